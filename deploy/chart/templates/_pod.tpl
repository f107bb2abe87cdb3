{{/* A Pod's metadata and spec; takes root and role. Of several hosts the leader serves as one that is alone does, and
followers only compute: they have no port, and it is the leader who finds out when one is lost. */}}
{{- define "roost.podTemplate" -}}
{{- with .root -}}
{{- include "roost.check" . -}}
{{- $drain := include "roost.drain" . | fromYaml -}}
metadata:
  labels:
    {{- include "roost.labels" . | nindent 4 }}
    {{- if ne $.role "alone" }}
    app.kubernetes.io/component: {{ $.role }}
    {{- end }}
    {{- with .Values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- if or .Values.podAnnotations (include "roost.usesGcsFuse" .) }}
  annotations:
    {{- if include "roost.usesGcsFuse" . }}
    gke-gcsfuse/volumes: "true"
    {{- end }}
    {{- with .Values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- end }}
spec:
  serviceAccountName: {{ include "roost.serviceAccountName" . }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ $drain.grace }}
  {{- range $name := list "priorityClassName" "runtimeClassName" "schedulerName" }}
  {{- with get $.root.Values $name }}
  {{ $name }}: {{ . }}
  {{- end }}
  {{- end }}
  securityContext:
    {{- include "roost.podSecurityContext" . | nindent 4 }}
  {{- range $name := list "imagePullSecrets" "resourceClaims" "initContainers" }}
  {{- with get $.root.Values $name }}
  {{ $name }}:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- end }}
  containers:
    - name: roost
      image: {{ include "roost.image" . | quote }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      args:
        - serve
        - {{ .Values.model.name | quote }}
        {{- if ne $.role "follower" }}
        - {{ printf "--host=%s" .Values.host | quote }}
        - --port=8000
        {{- if .Values.inferencePool.enabled }}
        - --metrics-compat=vllm
        {{- else }}
        - --admin-port=9090
        {{- end }}
        {{- with .Values.model.servedName }}
        - {{ printf "--served-model-name=%s" . | quote }}
        {{- end }}
        {{- if include "roost.isSecret" .Values.apiKeys }}
        - --api-key-file=/etc/roost/keys
        {{- end }}
        {{- if include "roost.hasTls" . }}
        - --ssl-certfile=/etc/roost-tls/tls.crt
        - --ssl-keyfile=/etc/roost-tls/tls.key
        {{- end }}
        {{- end }}
        {{- with include "roost.mesh" . }}
        - --mesh={{ . }}
        {{- end }}
        {{- if ne $.role "alone" }}
        # The set's controller makes these variables. Not port 8476, on which it lets libtpu listen.
        - --coordinator=$(LWS_LEADER_ADDRESS):8482
        - --num-hosts=$(LWS_GROUP_SIZE)
        - --host-index=$(LWS_WORKER_INDEX)
        {{- end }}
        # A folder of the server's own in the volume, to whose root others may write, as to that of every emptyDir.
        - --compile-cache=/cache/programs/compiled
        {{- if ne $.role "follower" }}
        - --state-cache-gib={{ include "roost.text" .Values.cache.memoryGib }}
        {{- if .Values.cache.states }}
        - --state-cache-dir=/cache/states
        - --state-cache-dir-gib={{ include "roost.text" .Values.cache.statesGib }}
        {{- end }}
        - --drain-lag={{ $drain.lag }}
        - --drain-timeout={{ $drain.timeout }}
        {{- if .Values.store.states }}
        - --state-store=/cache/checkpoints
        - --evacuate-seconds={{ $drain.evacuate }}
        {{- end }}
        {{- end }}
      env:
        - name: HOME
          value: /tmp
        - name: XDG_CACHE_HOME
          value: /cache/downloads
        - name: HF_HOME
          value: /cache/downloads/huggingface
        {{- if ne .Values.accelerator.kind "cpu" }}
        # So that a Pod without its chips fails, and does not serve from the CPU instead.
        - name: JAX_PLATFORMS
          value: {{ ternary "tpu,cpu" "cuda,cpu" (eq .Values.accelerator.kind "tpu") }}
        {{- end }}
        {{- $secrets := include "roost.secrets" . | fromJson }}
        {{- range $variable, $entry := include "roost.secretVariables" . | fromJson }}
        {{- if or (ne $.role "follower") (eq $variable "HF_TOKEN") }}
        - name: {{ $variable }}
          valueFrom:
            secretKeyRef:
              {{- include "roost.secretKey" (dict "root" $.root "given" (get $secrets $entry) "entry" $entry) | nindent 14 }}
        {{- end }}
        {{- end }}
        {{- range $name, $value := .Values.settings }}
        {{- if not (kindIs "invalid" $value) }}
        - name: ROOST_{{ upper $name }}
          value: {{ include "roost.text" $value | quote }}
        {{- end }}
        {{- end }}
        {{- with .Values.env }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- with .Values.envFrom }}
      envFrom:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- if ne $.role "follower" }}
      ports:
        - name: http
          containerPort: 8000
        {{- if not .Values.inferencePool.enabled }}
        - name: metrics
          containerPort: 9090
        {{- end }}
      {{- end }}
      resources:
        requests:
          {{- toYaml .Values.resources.requests | nindent 10 }}
          {{- if not .Values.resources.claims }}
          {{- with include "roost.chips" . }}
          {{- . | nindent 10 }}
          {{- end }}
          {{- end }}
        limits:
          {{- toYaml .Values.resources.limits | nindent 10 }}
          {{- if not .Values.resources.claims }}
          {{- with include "roost.chips" . }}
          {{- . | nindent 10 }}
          {{- end }}
          {{- end }}
        {{- with .Values.resources.claims }}
        claims:
          {{- toYaml . | nindent 10 }}
        {{- end }}
      {{- if ne $.role "follower" }}
      # Probes use the admin port, if there is one, which floods of connections from clients don't reach.
      # Nothing listens while weights are downloaded; then /health/ready is 503 until all is compiled.
      startupProbe:
        httpGet:
          path: /health/ready
          port: {{ ternary "http" "metrics" .Values.inferencePool.enabled }}
          {{- if include "roost.hasTls" . }}
          scheme: HTTPS
          {{- end }}
        periodSeconds: 5
        timeoutSeconds: 5
        failureThreshold: {{ div (add .Values.probes.startupSeconds 4) 5 }}
      readinessProbe:
        httpGet:
          path: /health/ready
          port: {{ ternary "http" "metrics" .Values.inferencePool.enabled }}
          {{- if include "roost.hasTls" . }}
          scheme: HTTPS
          {{- end }}
        periodSeconds: 5
        timeoutSeconds: 5
        failureThreshold: 2
      # 503 only when the engine is dead; a long queue or a drain is no reason to start again.
      livenessProbe:
        httpGet:
          path: /health
          port: {{ ternary "http" "metrics" .Values.inferencePool.enabled }}
          {{- if include "roost.hasTls" . }}
          scheme: HTTPS
          {{- end }}
        periodSeconds: 10
        timeoutSeconds: 10
        failureThreshold: 3
      {{- if $drain.preStop }}
      lifecycle:
        preStop:
          sleep:
            seconds: {{ $drain.preStop }}
      {{- end }}
      {{- end }}
      securityContext:
        {{- include "roost.securityContext" . | nindent 8 }}
      volumeMounts:
        - name: tmp
          mountPath: /tmp
        - name: downloads
          mountPath: /cache/downloads
        - name: programs
          mountPath: /cache/programs
        {{- if and .Values.cache.states (ne $.role "follower") }}
        - name: states
          mountPath: /cache/states
        {{- end }}
        {{- if and .Values.store.states (ne $.role "follower") }}
        - name: checkpoints
          mountPath: /cache/checkpoints
        {{- end }}
        {{- if .Values.model.volume }}
        - name: models
          mountPath: /models
          readOnly: true
        {{- end }}
        {{- if and (include "roost.isSecret" .Values.apiKeys) (ne $.role "follower") }}
        - name: keys
          mountPath: /etc/roost
          readOnly: true
        {{- end }}
        {{- if and (include "roost.hasTls" .) (ne $.role "follower") }}
        - name: tls
          mountPath: /etc/roost-tls
          readOnly: true
        {{- end }}
        {{- with .Values.volumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
  volumes:
    - name: tmp
      emptyDir:
        sizeLimit: 1Gi
    - name: downloads
      {{- include "roost.volume" (dict "root" . "volume" (.Values.cache.downloads | default (dict "size" "60Gi")) "readOnly" false) | nindent 6 }}
    - name: programs
      {{- include "roost.volume" (dict "root" . "volume" (.Values.cache.programs | default (dict "size" "2Gi")) "readOnly" false) | nindent 6 }}
    {{- if and .Values.cache.states (ne $.role "follower") }}
    - name: states
      {{- include "roost.volume" (dict "root" . "volume" .Values.cache.states "readOnly" false) | nindent 6 }}
    {{- end }}
    {{- if and .Values.store.states (ne $.role "follower") }}
    - name: checkpoints
      {{- include "roost.volume" (dict "root" . "volume" .Values.store.states "readOnly" false) | nindent 6 }}
    {{- end }}
    {{- if .Values.model.volume }}
    - name: models
      {{- include "roost.volume" (dict "root" . "volume" .Values.model.volume "readOnly" true) | nindent 6 }}
    {{- end }}
    {{- if and (include "roost.isSecret" .Values.apiKeys) (ne $.role "follower") }}
    - name: keys
      {{- $keys := include "roost.secretKey" (dict "root" . "given" .Values.apiKeys "entry" "api-keys") | fromYaml }}
      secret:
        secretName: {{ $keys.name }}
        items:
          - key: {{ $keys.key }}
            path: keys
    {{- end }}
    {{- if and (include "roost.hasTls" .) (ne $.role "follower") }}
    - name: tls
      secret:
        secretName: {{ .Values.tls.secret | default (include "roost.fullname" .) }}
        items:
          - key: tls.crt
            path: tls.crt
          - key: tls.key
            path: tls.key
    {{- end }}
    {{- with .Values.volumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with include "roost.nodeSelector" . | fromYaml }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with include "roost.tolerations" . | trim }}
  tolerations:
    {{- . | nindent 4 }}
  {{- end }}
  {{- with .Values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- if kindIs "invalid" .Values.topologySpreadConstraints }}
  topologySpreadConstraints:
    - maxSkew: 1
      topologyKey: kubernetes.io/hostname
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          {{- include "roost.selector" . | nindent 10 }}
  {{- else if .Values.topologySpreadConstraints }}
  topologySpreadConstraints:
    {{- toYaml .Values.topologySpreadConstraints | nindent 4 }}
  {{- end }}
{{- end -}}
{{- end }}
