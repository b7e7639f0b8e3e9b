{{/* A Job around an uninstall that runs one command of the operator. Takes root, component, args, deadline, retries, hook. */}}
{{- define "tonnage.uninstallJob" -}}
apiVersion: batch/v1
kind: Job
metadata:
  name: {{ printf "%s-%s" (include "tonnage.fullname" .root) .component }}
  namespace: {{ .root.Release.Namespace }}
  {{- include "tonnage.metadata" (dict "root" .root "component" .component "annotations" .hook) | nindent 2 }}
spec:
  # Helm waits for the Job, so it must end by itself.
  activeDeadlineSeconds: {{ .deadline }}
  backoffLimit: {{ .retries }}
  template:
    metadata:
      labels:
        {{- include "tonnage.podLabels" (dict "root" .root "component" .component) | nindent 8 }}
      annotations:
        sidecar.istio.io/inject: "false"
    spec:
      restartPolicy: Never
      serviceAccountName: {{ printf "%s-%s" (include "tonnage.fullname" .root) .component }}
      automountServiceAccountToken: true
      enableServiceLinks: false
      securityContext:
        {{- toYaml .root.Values.podSecurityContext | nindent 8 }}
      {{- with include "tonnage.imagePullSecrets" .root }}
      {{- . | nindent 6 }}
      {{- end }}
      {{- with include "tonnage.scheduling" (dict "root" .root) }}
      {{- . | nindent 6 }}
      {{- end }}
      containers:
      - name: {{ .component }}
        image: {{ include "tonnage.image" (dict "root" .root "image" .root.Values.image.operator) }}
        imagePullPolicy: {{ .root.Values.image.pullPolicy }}
        command: [tonnage-operator]
        args: {{ toJson .args }}
        resources:
          requests: {cpu: 50m, memory: 64Mi}
          limits: {memory: 256Mi}
        securityContext:
          {{- toYaml .root.Values.securityContext | nindent 10 }}
        terminationMessagePolicy: FallbackToLogsOnError
{{- end -}}

{{/* Its ServiceAccount. Takes root, component, hook. */}}
{{- define "tonnage.uninstallAccount" -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ printf "%s-%s" (include "tonnage.fullname" .root) .component }}
  namespace: {{ .root.Release.Namespace }}
  {{- include "tonnage.metadata" (dict "root" .root "component" .component "annotations" .hook) | nindent 2 }}
automountServiceAccountToken: false
{{- end -}}

{{/* Annotations of a hook. Takes weight. */}}
{{- define "tonnage.uninstallHook" -}}
helm.sh/hook: pre-delete
helm.sh/hook-weight: {{ .weight | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end -}}
