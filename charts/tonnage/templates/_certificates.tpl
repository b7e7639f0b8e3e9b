{{/*
Certificates. "Endpoint" is webhook or reports, the two that the chart serves over TLS.
*/}}

{{/* Takes root, endpoint. */}}
{{- define "tonnage.tlsSecretName" -}}
{{- if eq .root.Values.certificates.mode "Secret" -}}
{{- get (get .root.Values.certificates.secret .endpoint) "name" -}}
{{- else -}}
{{- printf "%s-%s-tls" (include "tonnage.fullname" .root) .endpoint -}}
{{- end -}}
{{- end -}}

{{/* A volume's source with the file ca.crt. Takes root, endpoint. */}}
{{- define "tonnage.caVolume" -}}
{{- if eq .root.Values.certificates.mode "Secret" -}}
configMap:
  name: {{ include "tonnage.installationName" .root }}
  items:
  - {key: {{ .endpoint }}-ca.crt, path: ca.crt}
{{- else -}}
secret:
  secretName: {{ include "tonnage.tlsSecretName" . }}
  defaultMode: 0440
  items:
  - {key: ca.crt, path: ca.crt}
{{- end -}}
{{- end -}}

{{/* All DNS names of an endpoint's Service, the fully qualified one first. Takes root, endpoint. */}}
{{- define "tonnage.dnsNames" -}}
{{- $service := include (ternary "tonnage.webhookName" "tonnage.controllerName" (eq .endpoint "webhook")) .root -}}
{{- $space := .root.Release.Namespace -}}
{{- $names := list (printf "%s.%s.svc" $service $space) (printf "%s.%s" $service $space) $service -}}
{{- $host := .root.Values.reports.host -}}
{{- if and (eq .endpoint "reports") $host (not (include "tonnage.isAddress" $host)) -}}
{{- $names = append $names $host | uniq -}}
{{- end -}}
{{- toJson $names -}}
{{- end -}}

{{/* All addresses in an endpoint's certificate. Takes root, endpoint. */}}
{{- define "tonnage.addresses" -}}
{{- $found := list -}}
{{- $service := ternary .root.Values.webhook.service .root.Values.controller.service (eq .endpoint "webhook") -}}
{{- with $service.clusterIP -}}
{{- $found = append $found . -}}
{{- end -}}
{{- $host := .root.Values.reports.host -}}
{{- if and (eq .endpoint "reports") $host (include "tonnage.isAddress" $host) -}}
{{- $found = append $found $host -}}
{{- end -}}
{{- $found | uniq | toJson -}}
{{- end -}}

{{/* "yes" for an IP address, empty for a name. */}}
{{- define "tonnage.isAddress" -}}
{{- if or (regexMatch "^[0-9.]+$" .) (contains ":" .) -}}yes{{- end -}}
{{- end -}}

{{- define "tonnage.reportsUrl" -}}
{{- $host := .Values.reports.host | default (printf "%s.%s.svc" (include "tonnage.controllerName" .) .Release.Namespace) -}}
{{- printf "https://%s:8443/v1/reports" (ternary (printf "[%s]" $host) $host (contains ":" $host)) -}}
{{- end -}}

{{/*
The Secret of a certificate that the chart creates, as YAML. Takes root, endpoint, component.

The Secret in the cluster is kept if it has the same names and generation and doesn't expire soon. Otherwise CA and
certificate are created again, and `ca.crt` has the new and the previous CA, so that connections succeed until all processes
have reloaded. A CA's key signs one certificate and is not stored, so it can't be stolen.
*/}}
{{- define "tonnage.selfSignedSecret" -}}
{{- $settings := .root.Values.certificates.selfSigned -}}
{{- $name := include "tonnage.tlsSecretName" . -}}
{{- $names := include "tonnage.dnsNames" . | fromJsonArray -}}
{{- $addresses := include "tonnage.addresses" . | fromJsonArray -}}
{{- $made := printf "%s %v" (concat $names $addresses | join ",") (int $settings.generation) -}}
{{- $old := lookup "v1" "Secret" .root.Release.Namespace $name | default dict -}}
{{- $data := $old.data | default dict -}}
{{- $notes := ($old.metadata | default dict).annotations | default dict -}}
{{- $layout := "2006-01-02T15:04:05Z07:00" -}}
{{- $ends := (toDate $layout (get $notes "tonnage.dev/expires" | default "1970-01-01T00:00:00Z")).Unix -}}
{{- $due := (now | dateModify (printf "%dh" (mul 24 (int $settings.renewBeforeDays)))).Unix -}}
{{- $whole := and (get $data "tls.crt") (get $data "tls.key") (get $data "ca.crt") -}}
{{- $expires := get $notes "tonnage.dev/expires" -}}
{{- if not (and $whole (eq (get $notes "tonnage.dev/certificate") $made) (gt $ends $due)) -}}
{{- $days := int $settings.validityDays -}}
{{- $expires = dateInZone $layout (now | dateModify (printf "%dh" (mul 24 $days))) "UTC" -}}
{{- $ca := genCAWithKey (printf "%s-ca" $name) $days (genPrivateKey "ecdsa") -}}
{{- $leaf := genSignedCertWithKey ($name | trunc 64) $addresses $names $days $ca (genPrivateKey "ecdsa") -}}
{{- $before := regexFind "(?s)-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----" (get $data "ca.crt" | b64dec) -}}
{{- $bundle := list (trim $ca.Cert) $before | compact | join "\n" -}}
{{- $data = dict "tls.crt" ($leaf.Cert | b64enc) "tls.key" ($leaf.Key | b64enc) "ca.crt" (printf "%s\n" $bundle | b64enc) -}}
{{- end -}}
apiVersion: v1
kind: Secret
type: kubernetes.io/tls
metadata:
  name: {{ $name }}
  namespace: {{ .root.Release.Namespace }}
  {{- include "tonnage.metadata" (dict "root" .root "component" .component "annotations" (dict "tonnage.dev/certificate" $made "tonnage.dev/expires" $expires)) | nindent 2 }}
data:
  {{- toYaml $data | nindent 2 }}
{{- end -}}
