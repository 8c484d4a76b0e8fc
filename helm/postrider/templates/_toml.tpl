{{/*
A map as TOML. Helm's own toToml writes every number of a values file as a float, which the relay refuses, and 5000000 as 5e+06.
Keys are sorted, so that the same values give the same text, and the same checksum.
Takes path (what stands before the keys in headers, with its dot) and table.
*/}}
{{- define "postrider.toml" -}}
{{- $path := .path -}}
{{- range $key, $value := .table -}}
{{- if and (not (kindIs "invalid" $value)) (not (include "postrider.toml.isTable" $value)) }}
{{ include "postrider.toml.key" $key }} = {{ include "postrider.toml.value" $value }}
{{- end -}}
{{- end -}}
{{- range $key, $value := .table -}}
{{- if and (not (kindIs "invalid" $value)) (include "postrider.toml.isTable" $value) -}}
{{- $name := printf "%s%s" $path (include "postrider.toml.key" $key) -}}
{{- if kindIs "map" $value }}

[{{ $name }}]
{{- include "postrider.toml" (dict "path" (printf "%s." $name) "table" $value) -}}
{{- else -}}
{{- range $value }}

[[{{ $name }}]]
{{- include "postrider.toml" (dict "path" (printf "%s." $name) "table" .) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Whether it is a table, or a list of nothing but tables. */}}
{{- define "postrider.toml.isTable" -}}
{{- if kindIs "map" . -}}
yes
{{- else if kindIs "slice" . -}}
{{- $all := gt (len .) 0 -}}
{{- range . -}}
{{- if not (kindIs "map" .) -}}{{- $all = false -}}{{- end -}}
{{- end -}}
{{- if $all -}}yes{{- end -}}
{{- end -}}
{{- end -}}

{{- define "postrider.toml.key" -}}
{{- if regexMatch "^[A-Za-z0-9_-]+$" . -}}{{- . -}}{{- else -}}{{- toRawJson . -}}{{- end -}}
{{- end -}}

{{/* A number of a values file is a float64, one of --set an int64, one of a parent chart's may be a json.Number. */}}
{{- define "postrider.toml.value" -}}
{{- if typeIs "json.Number" . -}}
{{- toString . -}}
{{- else if kindIs "string" . -}}
{{- toRawJson . -}}
{{- else if kindIs "float64" . -}}
{{- if eq (floor .) . -}}{{- printf "%.0f" . -}}{{- else -}}{{- printf "%v" . -}}{{- end -}}
{{- else if kindIs "slice" . -}}
{{- $items := list -}}
{{- range . -}}{{- $items = append $items (include "postrider.toml.value" .) -}}{{- end -}}
[{{ join ", " $items }}]
{{- else if kindIs "map" . -}}
{{- $items := list -}}
{{- range $key, $value := . -}}
{{- $items = append $items (printf "%s = %s" (include "postrider.toml.key" $key) (include "postrider.toml.value" $value)) -}}
{{- end -}}
{ {{- join ", " $items -}} }
{{- else -}}
{{- toString . -}}
{{- end -}}
{{- end -}}
