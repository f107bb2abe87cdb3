{{/* The chart's name, or its alias in a chart of charts. */}}
{{- define "roost.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end }}

{{/* The name of every object, or its start: that of the release, with the chart's where the release's does not contain it. */}}
{{- define "roost.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- default $full .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- end }}

{{/* Takes root and suffix; a name that is not too long with it. */}}
{{- define "roost.suffixedName" -}}
{{- printf "%s-%s" (include "roost.fullname" .root | trunc (int (sub 62 (len .suffix))) | trimSuffix "-") .suffix -}}
{{- end }}

{{- define "roost.selector" -}}
app.kubernetes.io/name: {{ include "roost.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* The Pods that requests and scrapes go to. */}}
{{- define "roost.servingSelector" -}}
{{ include "roost.selector" . }}
{{- if gt (int .Values.hosts.count) 1 }}
app.kubernetes.io/component: leader
{{- end }}
{{- end }}

{{- define "roost.labels" -}}
{{ include "roost.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "roost.serviceAccountName" -}}
{{ .Values.serviceAccount.name | default (ternary (include "roost.fullname" .) "default" .Values.serviceAccount.create) }}
{{- end }}

{{- define "roost.image" -}}
{{- $target := get (dict "cpu" "cpu" "nvidia" "cuda" "tpu" "tpu") .Values.accelerator.kind -}}
{{- $tag := .Values.image.tag | default (printf "%s-%s" .Chart.AppVersion $target) -}}
{{ .Values.image.repository }}:{{ $tag }}{{ with .Values.image.digest }}@{{ . }}{{ end }}
{{- end }}

{{/* The picker of an InferencePool reads metrics where it sends requests. Else they have a port of their own. */}}
{{- define "roost.metricsPort" -}}
{{ ternary "http" "metrics" .Values.inferencePool.enabled }}
{{- end }}

{{/* Seconds, as YAML: preStop, lag, timeout, evacuate, grace. The server itself takes up to 4 more after those. */}}
{{- define "roost.drain" -}}
{{- $default := dict "preStop" 5 "lag" 2 "timeout" 60 "evacuate" (ternary 20 0 (not (empty .Values.store.states))) -}}
{{- if .Values.spot -}}
{{- $default = ternary (dict "preStop" 0 "lag" 2 "timeout" 9 "evacuate" 0) (dict "preStop" 0 "lag" 2 "timeout" 3 "evacuate" 6) (empty .Values.store.states) -}}
{{- end -}}
{{- $given := .Values.drain -}}
{{- $preStop := ternary $default.preStop $given.preStopSeconds (kindIs "invalid" $given.preStopSeconds) | int -}}
{{- $lag := ternary $default.lag $given.lagSeconds (kindIs "invalid" $given.lagSeconds) | int -}}
{{- $timeout := ternary $default.timeout $given.timeoutSeconds (kindIs "invalid" $given.timeoutSeconds) | int -}}
{{- $evacuate := ternary $default.evacuate $given.evacuateSeconds (kindIs "invalid" $given.evacuateSeconds) | int -}}
{{- $grace := add $preStop $timeout $evacuate 5 -}}
{{- if gt $lag $timeout -}}
{{- fail (printf "drain.lagSeconds (%d) must not be more than drain.timeoutSeconds (%d)" $lag $timeout) -}}
{{- end -}}
{{- if and .Values.spot (gt (int $grace) 15) -}}
{{- fail (printf "spot nodes give a Pod 15 s; drain.preStopSeconds + drain.timeoutSeconds + drain.evacuateSeconds must be at most 10, not %d" (add $preStop $timeout $evacuate)) -}}
{{- end -}}
preStop: {{ $preStop }}
lag: {{ $lag }}
timeout: {{ $timeout }}
evacuate: {{ $evacuate }}
grace: {{ $grace }}
{{- end }}

{{/* A setting's value as a variable has it. Helm reads a number of YAML as a float, which would become 1e+06 from 1000000 on. */}}
{{- define "roost.text" -}}
{{- if kindIs "slice" . -}}
{{ join "," . }}
{{- else if kindIs "map" . -}}
{{ toJson . }}
{{- else if and (kindIs "float64" .) (eq (floor .) .) -}}
{{ printf "%.0f" . }}
{{- else -}}
{{ toString . }}
{{- end -}}
{{- end }}

{{/* A volume's source, from {claim}, {bucket} or {size}. */}}
{{- define "roost.volume" -}}
{{- $volume := .volume -}}
{{- if $volume.claim -}}
persistentVolumeClaim:
  claimName: {{ $volume.claim }}
  {{- if .readOnly }}
  readOnly: true
  {{- end }}
{{- else if $volume.bucket -}}
csi:
  driver: gcsfuse.csi.storage.gke.io
  readOnly: {{ .readOnly }}
  volumeAttributes:
    bucketName: {{ $volume.bucket }}
    mountOptions: {{ ternary "implicit-dirs,file-cache:enable-parallel-downloads:true" (include "roost.writableMount" .root) .readOnly | quote }}
{{- else -}}
emptyDir:
  sizeLimit: {{ $volume.size }}
{{- end -}}
{{- end }}

{{/* Options of a bucket that is written to: its files belong to the container's user. */}}
{{- define "roost.writableMount" -}}
implicit-dirs
{{- with .Values.podSecurityContext.runAsUser -}},uid={{ int . }}{{- end -}}
{{- with .Values.podSecurityContext.runAsGroup -}},gid={{ int . }}{{- end -}}
{{- end }}

{{/* A security context without what null has taken away, and with what accelerator.privileged needs. */}}
{{- define "roost.podSecurityContext" -}}
{{- $context := deepCopy .Values.podSecurityContext -}}
{{- if .Values.accelerator.privileged -}}
{{- $context = set (omit $context "runAsNonRoot" "runAsGroup") "runAsUser" 0 -}}
{{- end -}}
{{- include "roost.withoutNull" $context -}}
{{- end }}

{{- define "roost.securityContext" -}}
{{- $context := deepCopy .Values.securityContext -}}
{{- if .Values.accelerator.privileged -}}
{{- $context = set (omit $context "allowPrivilegeEscalation" "capabilities") "privileged" true -}}
{{- end -}}
{{- include "roost.withoutNull" $context -}}
{{- end }}

{{- define "roost.withoutNull" -}}
{{- $kept := dict -}}
{{- range $key, $value := . -}}
{{- if not (kindIs "invalid" $value) -}}
{{- $_ := set $kept $key $value -}}
{{- end -}}
{{- end -}}
{{- toYaml $kept -}}
{{- end }}

{{- define "roost.usesGcsFuse" -}}
{{- if or .Values.model.volume.bucket .Values.cache.downloads.bucket .Values.cache.programs.bucket .Values.cache.states.bucket .Values.store.states.bucket -}}
true
{{- end -}}
{{- end }}

{{- define "roost.nodeSelector" -}}
{{- $selector := deepCopy .Values.nodeSelector -}}
{{- if eq .Values.accelerator.kind "tpu" -}}
{{- $_ := set $selector "cloud.google.com/gke-tpu-accelerator" .Values.accelerator.tpuType -}}
{{- $_ := set $selector "cloud.google.com/gke-tpu-topology" .Values.accelerator.tpuTopology -}}
{{- end -}}
{{- if .Values.spot -}}
{{- $_ := set $selector "cloud.google.com/gke-spot" "true" -}}
{{- end -}}
{{- toYaml $selector -}}
{{- end }}

{{- define "roost.chips" -}}
{{- $name := get (dict "nvidia" "nvidia.com/gpu" "tpu" "google.com/tpu") .Values.accelerator.kind -}}
{{- if $name -}}
{{ $name }}: {{ .Values.accelerator.chips | quote }}
{{- end -}}
{{- end }}

{{- define "roost.mesh" -}}
{{- if kindIs "invalid" .Values.accelerator.mesh -}}
{{- if gt (mul .Values.accelerator.chips .Values.hosts.count) 1 -}}auto{{- end -}}
{{- else -}}
{{ .Values.accelerator.mesh }}
{{- end -}}
{{- end }}

{{- define "roost.scaleTarget" -}}
{{- if gt (int .Values.hosts.count) 1 -}}
apiVersion: leaderworkerset.x-k8s.io/v1
kind: LeaderWorkerSet
{{- else -}}
apiVersion: apps/v1
kind: Deployment
{{- end }}
name: {{ include "roost.fullname" . }}
{{- end }}

{{/* Secrets by the names of their entries in the chart's own Secret. */}}
{{- define "roost.secrets" -}}
{{- dict "api-keys" .Values.apiKeys "admin-key" .Values.adminKey "state-key" .Values.stateKey "store" .Values.store "hub-token" .Values.model.hubToken | toJson -}}
{{- end }}

{{/* Takes root, entry and given; the name of the Secret that has it, and its key there. */}}
{{- define "roost.secretKey" -}}
name: {{ .given.secret | default (include "roost.fullname" .root) }}
key: {{ ternary .given.key .entry (not (empty .given.secret)) }}
{{- end }}

{{/* Secrets that the server reads from variables: entries of the chart's own Secret. Those of `model` are all hosts'. */}}
{{- define "roost.secretVariables" -}}
{{- $variables := dict -}}
{{- $secrets := include "roost.secrets" . | fromJson -}}
{{- range $variable, $entry := dict "HF_TOKEN" "hub-token" "ROOST_STORE" "store" "ROOST_ADMIN_KEY" "admin-key" "ROOST_STATE_KEY" "state-key" -}}
{{- if include "roost.isSecret" (get $secrets $entry) -}}
{{- $_ := set $variables $variable $entry -}}
{{- end -}}
{{- end -}}
{{- toJson $variables -}}
{{- end }}

{{- define "roost.isSecret" -}}
{{- if or .secret .value -}}true{{- end -}}
{{- end }}

{{- define "roost.hasTls" -}}
{{- if or .Values.tls.secret .Values.tls.certificate -}}true{{- end -}}
{{- end }}

{{/* What the schema cannot say of secrets without showing them; makes nothing. */}}
{{- define "roost.checkSecrets" -}}
{{- range $name, $given := dict "apiKeys" .Values.apiKeys "adminKey" .Values.adminKey "stateKey" .Values.stateKey "store" .Values.store "model.hubToken" .Values.model.hubToken -}}
{{- if and $given.secret $given.value -}}
{{- fail (printf "%s has both secret and value; set one of them to \"\"" $name) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.tls.secret (or .Values.tls.certificate .Values.tls.privateKey) -}}
{{- fail "tls has both secret and certificate or privateKey; set one of them to \"\"" -}}
{{- end -}}
{{- if ne (empty .Values.tls.certificate) (empty .Values.tls.privateKey) -}}
{{- fail "tls must have certificate and privateKey together" -}}
{{- end -}}
{{- if and (include "roost.hasTls" .) .Values.inferencePool.enabled -}}
{{- fail "tls must be empty with inferencePool.enabled: the picker reads Pods without TLS; end it at the gateway" -}}
{{- end -}}
{{- if and .Values.stateKey.value (lt (len .Values.stateKey.value) 16) -}}
{{- fail "stateKey.value must have at least 16 characters" -}}
{{- end -}}
{{- if and .Values.store.states (not (include "roost.isSecret" .Values.store)) -}}
{{- fail "store.states needs the database: store.secret or store.value" -}}
{{- end -}}
{{- end }}

{{/* What the schema cannot say of chips, hosts, the mesh and two numbers; makes nothing. */}}
{{- define "roost.check" -}}
{{- $chips := int .Values.accelerator.chips -}}
{{- $hosts := int .Values.hosts.count -}}
{{- $devices := int (mul $chips $hosts) -}}
{{- $mesh := .Values.accelerator.mesh | default "" -}}
{{- if eq .Values.accelerator.kind "tpu" -}}
{{- $inTopology := 1 -}}
{{- range splitList "x" .Values.accelerator.tpuTopology -}}
{{- $inTopology = int (mul $inTopology (atoi .)) -}}
{{- end -}}
{{- if ne $inTopology $devices -}}
{{- fail (printf "accelerator.tpuTopology %s has %d chips, but accelerator.chips (%d) times hosts.count (%d) is %d" .Values.accelerator.tpuTopology $inTopology $chips $hosts $devices) -}}
{{- end -}}
{{- if and (gt $hosts 1) (ne $chips 4) -}}
{{- fail (printf "accelerator.chips must be 4 where hosts.count is %d, as in GKE's slices of several hosts, not %d" $hosts $chips) -}}
{{- end -}}
{{- end -}}
{{- if regexMatch "[0-9]" $mesh -}}
{{- $inMesh := 1 -}}
{{- range regexFindAll "[0-9]+" $mesh -1 -}}
{{- $inMesh = int (mul $inMesh (atoi .)) -}}
{{- end -}}
{{- if ne $inMesh $devices -}}
{{- fail (printf "accelerator.mesh %s takes %d devices, but accelerator.chips (%d) times hosts.count (%d) is %d" $mesh $inMesh $chips $hosts $devices) -}}
{{- end -}}
{{- else if and (gt $hosts 1) (eq $mesh "") (not (kindIs "invalid" .Values.accelerator.mesh)) -}}
{{- fail "accelerator.mesh must not be empty where hosts.count is more than 1: without a mesh only one device is used" -}}
{{- end -}}
{{- include "roost.checkSecrets" . -}}
{{- with .Values.autoscaling -}}
{{- if gt (int .minReplicas) (int .maxReplicas) -}}
{{- fail (printf "autoscaling.minReplicas (%v) must be at most autoscaling.maxReplicas (%v)" .minReplicas .maxReplicas) -}}
{{- end -}}
{{- end -}}
{{- end }}

{{- define "roost.tolerations" -}}
{{- with (include "roost.chips" . | fromYaml) }}
{{- range $name, $_ := . }}
- key: {{ $name }}
  operator: Exists
  effect: NoSchedule
{{- end }}
{{- end }}
{{- if .Values.spot }}
- key: cloud.google.com/gke-spot
  operator: Equal
  value: "true"
  effect: NoSchedule
{{- end }}
{{- with .Values.tolerations }}
{{ toYaml . }}
{{- end }}
{{- end }}
