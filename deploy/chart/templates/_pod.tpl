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
  serviceAccountName: {{ .Release.Name }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ $drain.grace }}
  securityContext:
    {{- if .Values.accelerator.privileged }}
    runAsUser: 0
    {{- else }}
    runAsNonRoot: true
    runAsUser: 10001
    runAsGroup: 10001
    {{- end }}
    fsGroup: 10001
    fsGroupChangePolicy: OnRootMismatch
    seccompProfile:
      type: RuntimeDefault
  {{- with .Values.image.pullSecrets }}
  imagePullSecrets:
    {{- range . }}
    - name: {{ . }}
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
        - --host=0.0.0.0
        - --port=8000
        {{- if .Values.inferencePool.enabled }}
        - --metrics-compat=vllm
        {{- else }}
        - --admin-port=9090
        {{- end }}
        {{- with .Values.model.servedName }}
        - {{ printf "--served-model-name=%s" . | quote }}
        {{- end }}
        {{- if .Values.apiKeys.secret }}
        - --api-key-file=/etc/roost/keys
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
        - --compile-cache=/cache/programs
        {{- if ne $.role "follower" }}
        - --state-cache-gib={{ .Values.cache.memoryGib }}
        {{- if .Values.cache.states }}
        - --state-cache-dir=/cache/states
        - --state-cache-dir-gib={{ .Values.cache.statesGib }}
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
        {{- if .Values.model.hubTokenSecret.name }}
        - name: HF_TOKEN
          valueFrom:
            secretKeyRef:
              name: {{ .Values.model.hubTokenSecret.name }}
              key: {{ .Values.model.hubTokenSecret.key }}
        {{- end }}
        {{- if and .Values.store.secret (ne $.role "follower") }}
        - name: ROOST_STORE
          valueFrom:
            secretKeyRef:
              name: {{ .Values.store.secret }}
              key: {{ .Values.store.key }}
        {{- end }}
        {{- range $name, $value := .Values.settings }}
        - name: ROOST_{{ upper $name }}
          value: {{ toString $value | quote }}
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
          {{- with include "roost.chips" . }}
          {{- . | nindent 10 }}
          {{- end }}
        limits:
          {{- toYaml .Values.resources.limits | nindent 10 }}
          {{- with include "roost.chips" . }}
          {{- . | nindent 10 }}
          {{- end }}
      {{- if ne $.role "follower" }}
      # Probes use the admin port, if there is one, which floods of connections from clients don't reach.
      # Nothing listens while weights are downloaded; then /health/ready is 503 until all is compiled.
      startupProbe:
        httpGet:
          path: /health/ready
          port: {{ ternary "http" "metrics" .Values.inferencePool.enabled }}
        periodSeconds: 5
        timeoutSeconds: 5
        failureThreshold: {{ div (add .Values.probes.startupSeconds 4) 5 }}
      readinessProbe:
        httpGet:
          path: /health/ready
          port: {{ ternary "http" "metrics" .Values.inferencePool.enabled }}
        periodSeconds: 5
        timeoutSeconds: 5
        failureThreshold: 2
      # 503 only when the engine is dead; a long queue or a drain is no reason to start again.
      livenessProbe:
        httpGet:
          path: /health
          port: {{ ternary "http" "metrics" .Values.inferencePool.enabled }}
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
        readOnlyRootFilesystem: true
        {{- if .Values.accelerator.privileged }}
        privileged: true
        {{- else }}
        allowPrivilegeEscalation: false
        capabilities:
          drop: [ALL]
        {{- end }}
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
        {{- if and .Values.apiKeys.secret (ne $.role "follower") }}
        - name: keys
          mountPath: /etc/roost
          readOnly: true
        {{- end }}
  volumes:
    - name: tmp
      emptyDir:
        sizeLimit: 1Gi
    - name: downloads
      {{- include "roost.volume" (dict "volume" .Values.cache.downloads "readOnly" false) | nindent 6 }}
    - name: programs
      {{- include "roost.volume" (dict "volume" .Values.cache.programs "readOnly" false) | nindent 6 }}
    {{- if and .Values.cache.states (ne $.role "follower") }}
    - name: states
      {{- include "roost.volume" (dict "volume" .Values.cache.states "readOnly" false) | nindent 6 }}
    {{- end }}
    {{- if and .Values.store.states (ne $.role "follower") }}
    - name: checkpoints
      {{- include "roost.volume" (dict "volume" .Values.store.states "readOnly" false) | nindent 6 }}
    {{- end }}
    {{- if .Values.model.volume }}
    - name: models
      {{- include "roost.volume" (dict "volume" .Values.model.volume "readOnly" true) | nindent 6 }}
    {{- end }}
    {{- if and .Values.apiKeys.secret (ne $.role "follower") }}
    - name: keys
      secret:
        secretName: {{ .Values.apiKeys.secret }}
        items:
          - key: {{ .Values.apiKeys.key }}
            path: keys
    {{- end }}
  {{- with include "roost.nodeSelector" . | fromYaml }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with include "roost.tolerations" . | trim }}
  tolerations:
    {{- . | nindent 4 }}
  {{- end }}
  topologySpreadConstraints:
    - maxSkew: 1
      topologyKey: kubernetes.io/hostname
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          {{- include "roost.selector" . | nindent 10 }}
{{- end -}}
{{- end }}
