{{/* The alerts, without the labels that values add. */}}
{{- define "tonnage.alerts" -}}
{{- $controller := printf "namespace=%q, service=%q" .Release.Namespace (include "tonnage.controllerName" .) -}}
{{- $webhook := printf "namespace=%q, service=%q" .Release.Namespace (include "tonnage.webhookName" .) -}}
- alert: TonnageControllerDown
  expr: absent(up{ {{- $controller -}} } == 1)
  for: 10m
  labels: {severity: warning}
  annotations:
    summary: No controller of Tonnage runs
    description: Nothing is warmed, cleaned up or reported. Pods go on as before. Look at the Deployment {{ include "tonnage.controllerName" . }}.
- alert: TonnageWebhookDown
  expr: absent(up{ {{- $webhook -}} } == 1)
  for: 2m
  labels: {severity: critical}
  annotations:
    summary: No webhook of Tonnage runs
    description: Pods that ask for weights are not admitted. Look at the Deployment {{ include "tonnage.webhookName" . }}.
- alert: TonnageWebhookUnreachable
  expr: sum(rate(apiserver_admission_webhook_rejection_count{name="inject.tonnage.dev", error_type="calling_webhook_error"}[5m])) > 0
  for: 5m
  labels: {severity: critical}
  annotations:
    summary: The API server can't call the webhook of Tonnage
    description: Pods that ask for weights are not admitted. Look at the Service, network policies, and the certificate.
- alert: TonnageAdmissionErrors
  expr: sum(rate(tonnage_admission_requests_total{result="error"}[5m])) > 0
  for: 10m
  labels: {severity: warning}
  annotations:
    summary: The webhook of Tonnage can't look models up
    description: Pods that ask for weights are refused for reasons that are not theirs. The webhook's log says which.
- alert: TonnageModelNotReady
  expr: max by (namespace, name) (tonnage_condition{type="Ready", status="True"}) == 0
  for: 30m
  labels: {severity: warning}
  annotations:
    summary: {{ `ModelWeights {{ $labels.namespace }}/{{ $labels.name }} is not ready` }}
    description: {{ `Pods can't use it. kubectl describe modelweights -n {{ $labels.namespace }} {{ $labels.name }} names the reason.` }}
- alert: TonnageNodesFailing
  expr: max by (namespace, name) (tonnage_failed_nodes) > 0
  for: 30m
  labels: {severity: warning}
  annotations:
    summary: {{ `Nodes can't load {{ $labels.namespace }}/{{ $labels.name }}` }}
    description: {{ `The last load failed on {{ $value }} nodes. kubectl describe modelweights -n {{ $labels.namespace }} {{ $labels.name }} names them.` }}
- alert: TonnageCertificateEnds
  expr: min by (namespace, service) (tonnage_certificate_expiry_timestamp_seconds > 0) - time() < 1209600
  labels: {severity: warning}
  annotations:
    summary: {{ `The certificate of {{ $labels.service }} ends within two weeks` }}
    description: {{ `Then the API server, or loaders, trust it no more. It ends in {{ $value | humanizeDuration }}.` }}
- alert: TonnageCertificateNotTakenUp
  expr: sum by (namespace, pod) (increase(tonnage_certificate_reload_total{result="failure"}[15m])) > 0
  labels: {severity: warning}
  annotations:
    summary: A certificate of Tonnage was replaced by one that can't be used
    description: {{ `The pod {{ $labels.pod }} goes on with the old one. See the Secret.` }}
{{- end -}}
