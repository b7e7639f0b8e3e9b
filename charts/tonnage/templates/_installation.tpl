{{/*
The installation's file, in the format of tonnage_operator/domain/installation.py.
*/}}
{{- define "tonnage.installation" -}}
namespace: {{ .Release.Namespace }}
media:
  {{- $media := dict }}
  {{- with .Values.cache.memory }}
  {{- if .enabled }}
  {{- $limits := include "tonnage.mediumLimits" . | fromYaml }}
  {{- $_ := set $media "Memory" (merge (dict "hostPath" .hostPath "reserved" .reserved) $limits) }}
  {{- end }}
  {{- end }}
  {{- with .Values.cache.disk }}
  {{- if .enabled }}
  {{- $limits := include "tonnage.mediumLimits" . | fromYaml }}
  {{- $_ := set $media "Disk" (merge (dict "hostPath" .hostPath) $limits) }}
  {{- end }}
  {{- end }}
  {{- toYaml $media | nindent 2 }}
defaultMedium: {{ .Values.cache.defaultMedium }}
highWatermarkPercent: {{ int .Values.cache.highWatermarkPercent }}
lowWatermarkPercent: {{ int .Values.cache.lowWatermarkPercent }}
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
gate:
  enabled: {{ .Values.gate.enabled }}
  mode: {{ .Values.gate.mode }}
  taints: {{ toJson .Values.gate.taints }}
  otherStartupTaints: {{ toJson .Values.gate.otherStartupTaints }}
  maxTimeout: {{ .Values.gate.maxTimeout | quote }}
jobs:
  {{- toYaml .Values.loader.jobs | nindent 2 }}
{{- if .Values.reports.enabled }}
reports:
  url: {{ include "tonnage.reportsUrl" . }}
  caFile: /etc/tonnage/reports-ca/ca.crt
  tokenSeconds: {{ int .Values.reports.tokenSeconds }}
  interval: {{ .Values.reports.intervalSeconds }}
{{- end }}
{{- if .Values.peers.enabled }}
peers:
  secret: {{ include "tonnage.peersName" . }}
  port: {{ int .Values.peers.port }}
  network: {{ .Values.peers.network }}
{{- end }}
jobServiceAccount: {{ .Values.loader.serviceAccountName }}
cleanupServiceAccount: {{ include "tonnage.serviceAccountName" (dict "root" . "component" "cleanup") }}
cleanupTolerateAll: {{ .Values.cleanup.tolerateAll }}
signingFolder: /etc/tonnage/signing
reviewToken: {{ ne (include "tonnage.reviewToken" .) "" }}
retryBase: {{ .Values.retry.baseSeconds }}
retryCap: {{ .Values.retry.capSeconds }}
{{- end -}}

{{/*
What loads may take of a medium, as a part of its settings.
*/}}
{{- define "tonnage.mediumLimits" -}}
{{- range $name := list "minFree" "capacity" "namespaceCapacity" "maxEntrySize" }}
{{- $amount := get $ $name }}
{{- /* Helm reads large numbers as floats. */}}
{{- if kindIs "float64" $amount }}{{ $amount = printf "%.0f" $amount }}{{ end }}
{{- if ne (toString $amount) "" }}
{{ $name }}: {{ $amount | toString | quote }}
{{- end }}
{{- end }}
{{- end -}}
