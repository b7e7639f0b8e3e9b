{{/*
The installation's file, in the format of tonnage_operator/domain/installation.py.
*/}}
{{- define "tonnage.installation" -}}
namespace: {{ .Release.Namespace }}
media:
  {{- $media := dict }}
  {{- with .Values.cache.memory }}
  {{- if .enabled }}
  {{- $_ := set $media "Memory" (dict "hostPath" .hostPath "minFree" (toString .minFree) "reserved" .reserved) }}
  {{- end }}
  {{- end }}
  {{- with .Values.cache.disk }}
  {{- if .enabled }}
  {{- $_ := set $media "Disk" (dict "hostPath" .hostPath "minFree" (toString .minFree)) }}
  {{- end }}
  {{- end }}
  {{- toYaml $media | nindent 2 }}
defaultMedium: {{ .Values.cache.defaultMedium }}
sharing: {{ .Values.cache.sharing }}
loader:
  image: {{ include "tonnage.image" (dict "root" . "image" .Values.image.loader) }}
  pullPolicy: {{ .Values.image.pullPolicy }}
  pullSecrets: {{ include "tonnage.pullSecrets" . }}
  uid: {{ int .Values.loader.uid }}
  unprivilegedUid: {{ int .Values.loader.unprivilegedUid }}
  memoryOverhead: {{ .Values.loader.memoryOverhead | quote }}
  resources:
    {{- range $kind, $amounts := .Values.loader.resources }}
    {{ $kind }}:
      {{- range $resource, $amount := $amounts }}
      {{ $resource }}: {{ $amount | quote }}
      {{- end }}
    {{- end }}
  {{- with .Values.loader.env }}
  env:
    {{- range . }}
    - name: {{ .name }}
      value: {{ .value | toString | quote }}
    {{- end }}
  {{- end }}
  {{- with .Values.loader.caBundle }}
  caBundle: {{ . | quote }}
  {{- end }}
  {{- with .Values.loader.seLinuxOptions }}
  seLinuxOptions:
    {{- toYaml . | nindent 4 }}
  {{- end }}
artifacts:
  enabled: {{ .Values.artifacts.enabled }}
  maxBytes: {{ .Values.artifacts.maxBytes | toString | quote }}
  maxNodeBytes: {{ .Values.artifacts.maxNodeBytes | toString | quote }}
  maxAge: {{ .Values.artifacts.maxAge | quote }}
prewarm:
  {{- toYaml .Values.prewarm | nindent 2 }}
jobs:
  {{- toYaml .Values.loader.jobs | nindent 2 }}
{{- if .Values.reports.enabled }}
reports:
  url: {{ include "tonnage.reportsUrl" . }}
  caFile: /etc/tonnage/reports-ca/ca.crt
  tokenSeconds: {{ int .Values.reports.tokenSeconds }}
  interval: {{ .Values.reports.intervalSeconds }}
{{- end }}
jobServiceAccount: {{ .Values.loader.serviceAccountName }}
cleanupServiceAccount: {{ include "tonnage.serviceAccountName" (dict "root" . "component" "cleanup") }}
cleanupTolerateAll: {{ .Values.cleanup.tolerateAll }}
signingFolder: /etc/tonnage/signing
reviewToken: {{ ne (include "tonnage.reviewToken" .) "" }}
retryBase: {{ .Values.retry.baseSeconds }}
retryCap: {{ .Values.retry.capSeconds }}
{{- end -}}
