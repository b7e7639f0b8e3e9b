{{/*
Shared parts of the pods of controller and webhook.
*/}}

{{/* The metadata of a pod template. Takes root, component, settings. */}}
{{- define "tonnage.podMetadata" -}}
labels:
  {{- include "tonnage.podLabels" . | nindent 2 }}
annotations:
  # Restarts the pods when the installation's file changes, which is read only at start. Certificates are reloaded.
  tonnage.dev/installation: {{ include "tonnage.installation" .root | sha256sum | trunc 16 }}
  # The signing keys are read only at start, too.
  tonnage.dev/signing: {{ printf "%s-%d" (include "tonnage.signingSecretName" .root) (int .root.Values.signing.generation) }}
  {{- with mergeOverwrite (deepCopy .root.Values.commonAnnotations) .settings.podAnnotations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{/* Arguments of the command. Takes component, settings. */}}
{{- define "tonnage.arguments" -}}
- {{ .component }}
- --config=/etc/tonnage/installation/installation.yaml
- --port=8443
- --health-port=8080
- --tls-cert=/etc/tonnage/tls/tls.crt
- --tls-key=/etc/tonnage/tls/tls.key
{{- if .settings.clientCA }}
- --client-ca=/etc/tonnage/client-ca/ca.crt
{{- range .settings.clientNames }}
- {{ printf "--client-name=%s" . | quote }}
{{- end }}
{{- end }}
- --log-level={{ .settings.logLevel }}
- --log-format={{ .settings.logFormat }}
{{- with .settings.extraArgs }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "tonnage.volumeMounts" -}}
- {name: installation, mountPath: /etc/tonnage/installation, readOnly: true}
- {name: tls, mountPath: /etc/tonnage/tls, readOnly: true}
- {name: signing, mountPath: /etc/tonnage/signing, readOnly: true}
{{- if .root.Values.reports.enabled }}
- {name: reports-ca, mountPath: /etc/tonnage/reports-ca, readOnly: true}
{{- end }}
{{- if .settings.clientCA }}
- {name: client-ca, mountPath: /etc/tonnage/client-ca, readOnly: true}
{{- end }}
{{- with .settings.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Takes root, endpoint, settings. */}}
{{- define "tonnage.volumes" -}}
- name: installation
  configMap:
    name: {{ include "tonnage.installationName" .root }}
    items:
    - {key: installation.yaml, path: installation.yaml}
- name: tls
  secret:
    secretName: {{ include "tonnage.tlsSecretName" . }}
    defaultMode: 0440
    items:
    - {key: tls.crt, path: tls.crt}
    - {key: tls.key, path: tls.key}
- name: signing
  secret:
    secretName: {{ include "tonnage.signingSecretName" .root }}
    defaultMode: 0440
    items:
    - {key: current, path: current}
    - {key: previous, path: previous}
{{- if .root.Values.reports.enabled }}
- name: reports-ca
  {{- include "tonnage.caVolume" (dict "root" .root "endpoint" "reports") | nindent 2 }}
{{- end }}
{{- if .settings.clientCA }}
- name: client-ca
  configMap:
    name: {{ include "tonnage.installationName" .root }}
    items:
    - {key: client-ca.crt, path: ca.crt}
{{- end }}
{{- with .settings.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}
