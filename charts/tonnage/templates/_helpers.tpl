{{/*
Shared names, labels and images. "Component" is controller, webhook, gate, cleanup, peers, release, wipe or test.
*/}}

{{- define "tonnage.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* Short enough for a suffix with a component's name. */}}
{{- define "tonnage.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 45 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "tonnage.name" . -}}
{{- ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) | trunc 45 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "tonnage.controllerName" -}}
{{- printf "%s-controller" (include "tonnage.fullname" .) -}}
{{- end -}}

{{- define "tonnage.webhookName" -}}
{{- printf "%s-webhook" (include "tonnage.fullname" .) -}}
{{- end -}}

{{- define "tonnage.installationName" -}}
{{- printf "%s-installation" (include "tonnage.fullname" .) -}}
{{- end -}}

{{- define "tonnage.signingSecretName" -}}
{{- .Values.signing.existingSecret | default (printf "%s-signing" (include "tonnage.fullname" .)) -}}
{{- end -}}

{{/* The peers' DaemonSet, their Secret, and what the controller may do with it. */}}
{{- define "tonnage.peersName" -}}
{{- printf "%s-peers" (include "tonnage.fullname" .) -}}
{{- end -}}

{{/* The immutable labels of a component's pods. Takes root, component. */}}
{{- define "tonnage.selectorLabels" -}}
app.kubernetes.io/name: {{ include "tonnage.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{/*
Labels and annotations of an object. Takes root, and optionally component, additional labels, additional annotations.
*/}}
{{- define "tonnage.metadata" -}}
labels:
  helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
  app.kubernetes.io/name: {{ include "tonnage.name" .root }}
  app.kubernetes.io/instance: {{ .root.Release.Name }}
  {{- with .component }}
  app.kubernetes.io/component: {{ . }}
  {{- end }}
  app.kubernetes.io/part-of: tonnage
  app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
  app.kubernetes.io/managed-by: {{ .root.Release.Service }}
  {{- with mergeOverwrite (deepCopy .root.Values.commonLabels) (.labels | default dict) }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with mergeOverwrite (deepCopy .root.Values.commonAnnotations) (.annotations | default dict) }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Labels of a pod. Takes root, component, settings. */}}
{{- define "tonnage.podLabels" -}}
{{- $own := dict -}}
{{- if hasKey . "settings" -}}
{{- $own = .settings.podLabels -}}
{{- end -}}
{{- mergeOverwrite (deepCopy .root.Values.commonLabels) $own (include "tonnage.selectorLabels" . | fromYaml) | toYaml -}}
{{- end -}}

{{/* Takes root, component. */}}
{{- define "tonnage.serviceAccountName" -}}
{{- $made := printf "%s-%s" (include "tonnage.fullname" .root) .component -}}
{{- $account := (get .root.Values .component).serviceAccount -}}
{{- $account.name | default (ternary $made "default" $account.create) -}}
{{- end -}}

{{/* Takes root, image. */}}
{{- define "tonnage.image" -}}
{{- $registry := .root.Values.global.imageRegistry | default .root.Values.image.registry | trimSuffix "/" -}}
{{- $name := ternary (printf "%s/%s" $registry .image.repository) .image.repository (ne $registry "") -}}
{{- if .image.digest -}}
{{- printf "%s@%s" $name .image.digest -}}
{{- else -}}
{{- printf "%s:%s" $name (.image.tag | default .root.Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{/* A JSON list of names. */}}
{{- define "tonnage.pullSecrets" -}}
{{- concat .Values.global.imagePullSecrets .Values.image.pullSecrets | uniq | toJson -}}
{{- end -}}

{{/* The field "imagePullSecrets" of a pod; empty without pull secrets. */}}
{{- define "tonnage.imagePullSecrets" -}}
{{- with include "tonnage.pullSecrets" . | fromJsonArray -}}
imagePullSecrets:
{{- range . }}
- name: {{ . }}
{{- end }}
{{- end }}
{{- end -}}

{{/*
The scheduling fields of a pod's spec. Takes root, and optionally the component's settings. The startup taints of the gate
are tolerated: without these pods, nothing would remove them from a cluster's first nodes.
*/}}
{{- define "tonnage.scheduling" -}}
{{- $own := .settings | default dict -}}
{{- $general := .root.Values -}}
{{- $tolerations := $own.tolerations | default $general.tolerations -}}
{{- if $general.gate.enabled -}}
{{- range $general.gate.taints -}}
{{- $tolerations = append $tolerations (dict "key" . "operator" "Exists") -}}
{{- end -}}
{{- end -}}
{{- $wanted := dict
    "nodeSelector" ($own.nodeSelector | default $general.nodeSelector)
    "tolerations" $tolerations
    "affinity" $own.affinity
    "priorityClassName" ($own.priorityClassName | default $general.priorityClassName) -}}
{{- $found := dict -}}
{{- range $member, $value := $wanted -}}
{{- if $value -}}{{- $_ := set $found $member $value -}}{{- end -}}
{{- end -}}
{{- with $found -}}{{- toYaml . -}}{{- end -}}
{{- end -}}

{{/* The fields env and envFrom of a component's container. Takes the settings. */}}
{{- define "tonnage.environment" -}}
{{- $found := dict -}}
{{- with .extraEnv -}}{{- $_ := set $found "env" . -}}{{- end -}}
{{- with .extraEnvFrom -}}{{- $_ := set $found "envFrom" . -}}{{- end -}}
{{- with $found -}}{{- toYaml . -}}{{- end -}}
{{- end -}}

{{/* The probes of controller and webhook. */}}
{{- define "tonnage.probes" -}}
startupProbe:
  httpGet: {path: /healthz, port: health}
  periodSeconds: 1
  failureThreshold: 60
livenessProbe:
  httpGet: {path: /healthz, port: health}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet: {path: /readyz, port: health}
  periodSeconds: 2
  timeoutSeconds: 2
  failureThreshold: 3
{{- end -}}

{{/*
The signing keys, as JSON: current and previous. The Secret in the cluster is kept; another generation makes a new key, and
keeps the one before it valid. Both are empty if the Secret is the administrator's and can't be read, as without a cluster.
A new key is random, so the first result is kept for the other templates of this rendering.
*/}}
{{- define "tonnage.signingKeys" -}}
{{- if not (hasKey .Values "renderedKeys") -}}
{{- $old := lookup "v1" "Secret" .Release.Namespace (include "tonnage.signingSecretName" .) | default dict -}}
{{- $before := get ($old.data | default dict) "current" | default "" | b64dec | trim -}}
{{- $keys := dict "current" $before "previous" (get ($old.data | default dict) "previous" | default "" | b64dec | trim) -}}
{{- if not .Values.signing.existingSecret -}}
{{- $generation := toString (int .Values.signing.generation) -}}
{{- if or (not $before) (ne (get (($old.metadata | default dict).annotations | default dict) "tonnage.dev/generation") $generation) -}}
{{- $keys = dict "current" (randAlphaNum 64) "previous" $before -}}
{{- end -}}
{{- end -}}
{{- $_ := set .Values "renderedKeys" $keys -}}
{{- end -}}
{{- toJson .Values.renderedKeys -}}
{{- end -}}

{{/*
What the paths of the webhook end with, so that others can't send reviews: a slash and a token that is made from the
signing key; empty without a key. It is the older key's, since webhooks that run have it already.
*/}}
{{- define "tonnage.reviewToken" -}}
{{- $keys := include "tonnage.signingKeys" . | fromJson -}}
{{- with $keys.previous | default $keys.current -}}
/{{ printf "tonnage review token %s" . | sha256sum }}
{{- end -}}
{{- end -}}
