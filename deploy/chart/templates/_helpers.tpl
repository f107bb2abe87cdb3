{{- define "roost.selector" -}}
app.kubernetes.io/name: roost
app.kubernetes.io/instance: {{ .Release.Name }}
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

{{/* Seconds, as YAML: preStop, lag, timeout, grace. The server itself takes up to 4 more after its timeout. */}}
{{- define "roost.drain" -}}
{{- $default := ternary (dict "preStop" 0 "lag" 2 "timeout" 9) (dict "preStop" 5 "lag" 2 "timeout" 60) .Values.spot -}}
{{- $given := .Values.drain -}}
{{- $preStop := ternary $default.preStop $given.preStopSeconds (kindIs "invalid" $given.preStopSeconds) | int -}}
{{- $lag := ternary $default.lag $given.lagSeconds (kindIs "invalid" $given.lagSeconds) | int -}}
{{- $timeout := ternary $default.timeout $given.timeoutSeconds (kindIs "invalid" $given.timeoutSeconds) | int -}}
{{- $grace := add $preStop $timeout 5 -}}
{{- if gt $lag $timeout -}}
{{- fail (printf "drain.lagSeconds (%d) must not be more than drain.timeoutSeconds (%d)" $lag $timeout) -}}
{{- end -}}
{{- if and .Values.spot (gt (int $grace) 15) -}}
{{- fail (printf "spot nodes give a Pod 15 s; drain.preStopSeconds + drain.timeoutSeconds must be at most 10, not %d" (add $preStop $timeout)) -}}
{{- end -}}
preStop: {{ $preStop }}
lag: {{ $lag }}
timeout: {{ $timeout }}
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
{{- if or .Values.model.volume.bucket .Values.cache.downloads.bucket .Values.cache.programs.bucket .Values.cache.states.bucket -}}
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
