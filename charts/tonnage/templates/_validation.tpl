{{/*
Checks of values that a schema can't express.
*/}}
{{- define "tonnage.validate" -}}
{{- $cache := .Values.cache -}}
{{- $offered := list -}}
{{- if $cache.memory.enabled }}{{ $offered = append $offered "Memory" }}{{ end -}}
{{- if $cache.disk.enabled }}{{ $offered = append $offered "Disk" }}{{ end -}}
{{- if and $offered (not (has $cache.defaultMedium $offered)) -}}
{{- fail (printf "cache.defaultMedium is %s, which is not enabled: choose %s." $cache.defaultMedium (join " or " $offered)) -}}
{{- end -}}
{{- if and $cache.memory.enabled $cache.disk.enabled -}}
{{- $memory := printf "%s/" $cache.memory.hostPath -}}
{{- $disk := printf "%s/" $cache.disk.hostPath -}}
{{- if or (hasPrefix $memory $disk) (hasPrefix $disk $memory) -}}
{{- fail "cache.memory.hostPath and cache.disk.hostPath must not be within each other." -}}
{{- end -}}
{{- end -}}
{{- $images := list "operator" "loader" -}}
{{- if .Values.peers.enabled -}}
{{- $images = append $images "peer" -}}
{{- if not .Values.reports.enabled -}}
{{- fail "peers.enabled needs reports.enabled: loaders learn about peers by the answers to their reports." -}}
{{- end -}}
{{- if not $offered -}}
{{- fail "peers.enabled needs cache.memory.enabled or cache.disk.enabled: peers serve entries on nodes." -}}
{{- end -}}
{{- end -}}
{{- range $component := $images -}}
{{- $name := include "tonnage.image" (dict "root" $ "image" (get $.Values.image $component)) -}}
{{- if not (regexMatch "^(localhost|[^/]*[.:][^/]*)/" $name) -}}
{{- fail (printf "The image %s has no registry, so a container runtime may search for it in public ones, and the loader runs as root on nodes. Set image.registry to yours, or to localhost for images that were imported on the nodes as localhost/%s." $name (get $.Values.image $component).repository) -}}
{{- end -}}
{{- end -}}
{{- if gt (int $cache.lowWatermarkPercent) (int $cache.highWatermarkPercent) -}}
{{- fail "cache.lowWatermarkPercent must not be above cache.highWatermarkPercent." -}}
{{- end -}}
{{- if and .Values.gate.enabled (not .Values.gate.serviceAccount.create) (not .Values.gate.serviceAccount.name) -}}
{{- fail "gate.serviceAccount.create is false: set gate.serviceAccount.name to an account of the gate's own. Its rights are limited by a policy that applies to this account." -}}
{{- end -}}
{{- if eq .Values.certificates.mode "Secret" -}}
{{- range $endpoint, $secret := .Values.certificates.secret -}}
{{- if not (and $secret.name $secret.caBundle) -}}
{{- fail (printf "certificates.mode is Secret: set certificates.secret.%s.name, and .caBundle to the PEM of the CA that signed it." $endpoint) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- if le (int .Values.certificates.selfSigned.validityDays) (int .Values.certificates.selfSigned.renewBeforeDays) -}}
{{- fail "certificates.selfSigned.renewBeforeDays must be smaller than validityDays, or each upgrade would create new certificates." -}}
{{- end -}}
{{- if $offered -}}
{{- $space := lookup "v1" "Namespace" "" .Release.Namespace | default dict -}}
{{- $level := get (($space.metadata | default dict).labels | default dict) "pod-security.kubernetes.io/enforce" -}}
{{- if has $level (list "baseline" "restricted") -}}
{{- fail (printf "Namespace %s enforces the %s Pod Security level, which forbids host paths, but cleanup Jobs, which evict entries from nodes, run there and need them. Label it with pod-security.kubernetes.io/enforce=privileged (the chart's Deployments conform to restricted), or set cache.memory.enabled and cache.disk.enabled to false: then models are delivered only by PersistentVolumeClaim or EmptyDir." .Release.Namespace $level) -}}
{{- end -}}
{{- end -}}
{{- end -}}
