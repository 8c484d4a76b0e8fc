{{- define "postrider.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimAll "-" -}}
{{- end -}}

{{/* At most 50 characters: a StatefulSet's pods bear its name and a hash of eleven more, Services a suffix of ten. */}}
{{- define "postrider.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimAll "-" -}}
{{- else if contains (include "postrider.name" .) .Release.Name -}}
{{- .Release.Name | trunc 50 | trimAll "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "postrider.name" .) | trunc 50 | trimAll "-" -}}
{{- end -}}
{{- end -}}

{{- define "postrider.selector" -}}
app.kubernetes.io/name: {{ include "postrider.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/component: relay
{{- end -}}

{{- define "postrider.commonLabels" -}}
app.kubernetes.io/name: {{ include "postrider.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end -}}

{{- define "postrider.labels" -}}
{{ include "postrider.commonLabels" . }}
app.kubernetes.io/component: relay
{{- end -}}

{{- define "postrider.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "postrider.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "postrider.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{- printf "%s@%s" .repository .digest -}}
{{- else -}}
{{- printf "%s:%s" .repository (default $.Chart.AppVersion .tag) -}}
{{- end -}}
{{- end -}}
{{- end -}}
