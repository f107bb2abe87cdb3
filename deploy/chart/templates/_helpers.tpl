{{- define "roost.selector" -}}
app.kubernetes.io/name: roost
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
    mountOptions: {{ ternary "implicit-dirs,file-cache:enable-parallel-downloads:true" "implicit-dirs,uid=10001,gid=10001" .readOnly | quote }}
{{- else -}}
emptyDir:
  sizeLimit: {{ $volume.size }}
{{- end -}}
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
name: {{ .Release.Name }}
{{- end }}

{{/* What the schema cannot say of chips, hosts and the mesh; makes nothing. */}}
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
