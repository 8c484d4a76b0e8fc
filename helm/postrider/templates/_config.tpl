{{/* The port of HOST:PORT. */}}
{{- define "postrider.port" -}}
{{- regexFind ":[0-9]+$" (toString .) | trimPrefix ":" -}}
{{- end -}}

{{- define "postrider.isLoopback" -}}
{{- if regexMatch "^(127\\.|\\[::1\\]:|localhost:)" (toString .) -}}yes{{- end -}}
{{- end -}}

{{/* The admin API's port, where the cluster can reach it: on loopback it is for `kubectl port-forward` alone. */}}
{{- define "postrider.adminPort" -}}
{{- $address := (default dict .Values.config.admin).address -}}
{{- if and $address (not (include "postrider.isLoopback" $address)) -}}
{{- include "postrider.port" $address -}}
{{- end -}}
{{- end -}}

{{/* The listeners as JSON: kind, name, port (the pod's), front (its Service's). One port of both families is one. */}}
{{- define "postrider.ports" -}}
{{- $known := dict "submission" 587 "submissions" 465 "trusted" 25 -}}
{{- $seen := dict -}}
{{- $ports := list -}}
{{- range $number, $listener := .Values.config.listener -}}
{{- if not (hasKey $known (toString .kind)) -}}
{{- fail (printf "config.listener[%d].kind: one of submission, submissions, trusted, not %v" $number .kind) -}}
{{- end -}}
{{- $port := include "postrider.port" .address | int -}}
{{- if not $port -}}
{{- fail (printf "config.listener[%d].address: %v names no port" $number .address) -}}
{{- end -}}
{{- $before := get $seen (toString $port) -}}
{{- if and $before (ne $before .kind) -}}
{{- fail (printf "config.listener[%d].address: port %d is a %s listener's already" $number $port $before) -}}
{{- else if $before -}}
{{- else if hasKey $seen .kind -}}
{{- $ports = append $ports (dict "kind" .kind "name" (printf "smtp-%d" $port) "port" $port "front" $port) -}}
{{- else -}}
{{- $_ := set $seen .kind true -}}
{{- $ports = append $ports (dict "kind" .kind "name" .kind "port" $port "front" (get $known .kind)) -}}
{{- end -}}
{{- $_ := set $seen (toString $port) .kind -}}
{{- end -}}
{{- dict "ports" $ports | toJson -}}
{{- end -}}

{{/* Seconds of drain_timeout as the configuration writes it, rounded up. A leading 0 would make a number octal to Helm. */}}
{{- define "postrider.seconds" -}}
{{- $unit := dict "ms" 1 "s" 1000 "m" 60000 "h" 3600000 "d" 86400000 -}}
{{- $whole := 0 -}}
{{- if not (regexMatch "^(0*[0-9]{1,8}(ms|s|m|h|d))+$" .) -}}
{{- fail (printf "config.drain_timeout: %q is no time span; write such as \"30s\" or \"1m30s\"" .) -}}
{{- end -}}
{{- range regexFindAll "[0-9]+(ms|s|m|h|d)" . -1 -}}
{{- $number := regexFind "^[0-9]+" . -}}
{{- $whole = add $whole (mul (regexReplaceAll "^0+([0-9])" $number "${1}" | int64) (get $unit (trimPrefix $number .))) -}}
{{- end -}}
{{- if or (lt $whole 1) (gt $whole 86400000) -}}
{{- fail (printf "config.drain_timeout: %q is not within 1ms and 1d" .) -}}
{{- end -}}
{{- div (add $whole 999) 1000 -}}
{{- end -}}

{{- define "postrider.gracePeriod" -}}
{{- $drain := include "postrider.seconds" (default "30s" .Values.config.drain_timeout) | int -}}
{{- if kindIs "invalid" .Values.terminationGracePeriodSeconds -}}
{{- add $drain 15 -}}
{{- else -}}
{{- $grace := int .Values.terminationGracePeriodSeconds -}}
{{- if le $grace $drain -}}
{{- fail (printf "terminationGracePeriodSeconds: %d s are not above config.drain_timeout (%d s): the relay would be killed while it finishes what is on the wire, and mail would be sent twice" $grace $drain) -}}
{{- end -}}
{{- $grace -}}
{{- end -}}
{{- end -}}

{{/* Ports of next hops, beside delivery.port, as the relay chooses them; a line each. */}}
{{- define "postrider.smartHostPorts" -}}
{{- range .Values.config.smart_host -}}
{{- $default := 25 -}}
{{- if eq (toString .tls) "implicit" -}}{{- $default = 465 -}}{{- else if .user -}}{{- $default = 587 -}}{{- end -}}
{{- range .hosts }}
{{ default $default .port | int }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Every file that the configuration names, as KEY=PATH, a line each. */}}
{{- define "postrider.files" -}}
{{- $config := .Values.config -}}
{{- with $config.credentials }}
credentials={{ . }}
{{- end -}}
{{- range $number, $listener := $config.listener -}}
{{- with .certificate }}
listener[{{ $number }}].certificate={{ . }}
{{- end -}}
{{- with .key }}
listener[{{ $number }}].key={{ . }}
{{- end -}}
{{- end -}}
{{- range $number, $key := $config.dkim }}
dkim[{{ $number }}].key={{ .key }}
{{- end -}}
{{- range $number, $host := $config.smart_host -}}
{{- with .password_file }}
smart_host[{{ $number }}].password_file={{ . }}
{{- end -}}
{{- end -}}
{{- with $config.delivery -}}
{{- with .ca_file }}
delivery.ca_file={{ . }}
{{- end -}}
{{- end -}}
{{- with $config.admin -}}
{{- range $key := list "tokens" "certificate" "key" -}}
{{- with get $config.admin $key }}
admin.{{ $key }}={{ . }}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* What can be said of the values before the relay sees them, each with its reason. `postrider check` looks at the rest. */}}
{{- define "postrider.check" -}}
{{- $values := .Values -}}
{{- $config := .Values.config -}}
{{- if not $config.hostname -}}
{{- fail "config.hostname is needed: the name other mail servers know this relay by, such as mail.example.com" -}}
{{- end -}}
{{- $name := include "postrider.fullname" . -}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $name) -}}
{{- fail (printf "the release's full name is %q, and a Service's name has letters (a-z), digits and hyphens alone, a letter first: set fullnameOverride" $name) -}}
{{- end -}}
{{- if not $config.tenants -}}
{{- fail "config.tenants is needed: who sends, such as {acme: {senders: [example.com]}}" -}}
{{- end -}}
{{- if not $config.listener -}}
{{- fail "config.listener is needed: without one no mail can come in" -}}
{{- end -}}
{{- if gt (int .Values.replicas) 1 -}}
{{- fail "replicas: more than 1 is refused. Each pod has a queue of its own, and a pod that goes away for good takes its queue with it; until pods can hand their queues over to each other, one with a volume that outlives it is the safe number" -}}
{{- end -}}
{{- if $config.include -}}
{{- fail "config.include: the pod has no further files of configuration; write all of it into config" -}}
{{- end -}}
{{- if not $config.metrics.address -}}
{{- fail "config.metrics.address is needed: the probes ask there" -}}
{{- end -}}
{{- if include "postrider.isLoopback" $config.metrics.address -}}
{{- fail (printf "config.metrics.address: the probes can't reach %s; write such as \"0.0.0.0:9464\"" $config.metrics.address) -}}
{{- end -}}
{{- $taken := dict -}}
{{- range (include "postrider.ports" . | fromJson).ports -}}
{{- $_ := set $taken (toString .port) (printf "a %s listener's" .kind) -}}
{{- end -}}
{{- range $key := list "metrics" "admin" -}}
{{- $address := (default dict (get $config $key)).address -}}
{{- if $address -}}
{{- $port := include "postrider.port" $address -}}
{{- if not $port -}}
{{- fail (printf "config.%s.address: %v names no port" $key $address) -}}
{{- end -}}
{{- if lt (int $port) 1024 -}}
{{- fail (printf "config.%s.address: port %s is for root, which the pod is not; write such as \"0.0.0.0:9464\"" $key $port) -}}
{{- end -}}
{{- if hasKey $taken $port -}}
{{- fail (printf "config.%s.address: port %s is %s already" $key $port (get $taken $port)) -}}
{{- end -}}
{{- $_ := set $taken $port (printf "config.%s.address's" $key) -}}
{{- end -}}
{{- end -}}
{{- $socket := (default dict $config.admin).socket -}}
{{- if and $socket (not (hasPrefix "/run/postrider/" $socket)) (not (hasPrefix "/var/lib/postrider/" $socket)) -}}
{{- fail (printf "config.admin.socket: %s is in no volume that the relay may write to; write such as \"/run/postrider/admin.sock\"" $socket) -}}
{{- end -}}
{{- $path := default "none" $config.store.path -}}
{{- if not (hasPrefix "/var/lib/postrider/" $path) -}}
{{- fail (printf "config.store.path: %s is not below the volume, /var/lib/postrider; mail there would be gone with the pod" $path) -}}
{{- end -}}
{{- range list (list "service" "submission") (list "service" "submissions") (list "trustedService" "trusted") -}}
{{- $front := index . 0 -}}
{{- $service := get $values $front -}}
{{- $kind := index . 1 -}}
{{- range $number, $listener := $config.listener -}}
{{- if and (eq .kind $kind) (eq $kind "trusted") (ne $service.type "ClusterIP") (ne $service.externalTrafficPolicy "Local") (not .proxy_protocol) -}}
{{- fail (printf "trustedService.type: %s without externalTrafficPolicy Local hides its clients behind their node's address (SNAT), so whoever reaches a node would be trusted. Set trustedService.externalTrafficPolicy to Local, or config.listener[%d].proxy_protocol to your load balancers" $service.type $number) -}}
{{- end -}}
{{- if and (eq .kind $kind) .xclient (ne $service.type "ClusterIP") (ne $service.externalTrafficPolicy "Local") (not .proxy_protocol) -}}
{{- fail (printf "config.listener[%d].xclient: %s.type %s without externalTrafficPolicy Local hides its clients behind their node's address (SNAT), and whoever reaches a node could say by XCLIENT who has logged in. Set %s.externalTrafficPolicy to Local, or proxy_protocol to your load balancers" $number $front $service.type $front) -}}
{{- end -}}
{{- if include "postrider.isLoopback" .address -}}
{{- fail (printf "config.listener[%d].address: nobody reaches %s from outside of the pod; write such as \"0.0.0.0:1587\"" $number .address) -}}
{{- end -}}
{{- $port := include "postrider.port" .address | int -}}
{{- if and $port (lt $port 1024) -}}
{{- fail (printf "config.listener[%d].address: port %d is for root, which the pod is not; the Service has it in front" $number $port) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range $key := list "service" "trustedService" -}}
{{- $service := get $values $key -}}
{{- if and $service.externalTrafficPolicy (eq $service.type "ClusterIP") -}}
{{- fail (printf "%s.externalTrafficPolicy is of LoadBalancer and NodePort; a ClusterIP has none" $key) -}}
{{- end -}}
{{- if and $service.loadBalancerSourceRanges (ne $service.type "LoadBalancer") -}}
{{- fail (printf "%s.loadBalancerSourceRanges is of LoadBalancer, and type is %s: nobody would be kept out" $key $service.type) -}}
{{- end -}}
{{- if and $service.loadBalancerClass (ne $service.type "LoadBalancer") -}}
{{- fail (printf "%s.loadBalancerClass is of LoadBalancer, and type is %s" $key $service.type) -}}
{{- end -}}
{{- end -}}
{{- range splitList "\n" (include "postrider.files" . | trim) -}}
{{- if . -}}
{{- $key := regexReplaceAll "=.*" . "" -}}
{{- $path := trimPrefix (printf "%s=" $key) . -}}
{{- $folder := regexFind "^/etc/postrider/[^/]+/" $path | trimPrefix "/etc/postrider/" | trimSuffix "/" -}}
{{- if $folder -}}
{{- if not (get $values.secrets $folder) -}}
{{- fail (printf "config.%s: %s needs a Secret: set secrets.%s to its name" $key $path $folder) -}}
{{- end -}}
{{- else if not (hasPrefix "/var/lib/postrider/" $path) -}}
{{- fail (printf "config.%s: %s is in no volume of the pod. Write /etc/postrider/FOLDER/FILE, and set secrets.FOLDER to the Secret's name" $key $path) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range $number, $host := $config.smart_host -}}
{{- if and .password_env (not (hasKey $values.secretEnvironment .password_env)) -}}
{{- fail (printf "config.smart_host[%d].password_env: set secretEnvironment.%s to the Secret and key that hold the password" $number .password_env) -}}
{{- end -}}
{{- end -}}
{{- end -}}
