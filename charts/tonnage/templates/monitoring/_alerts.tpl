{{/* The alerts, without the labels that values add. */}}
{{- define "tonnage.alerts" -}}
{{- $controller := printf "namespace=%q, service=%q" .Release.Namespace (include "tonnage.controllerName" .) -}}
{{- $webhook := printf "namespace=%q, service=%q" .Release.Namespace (include "tonnage.webhookName" .) -}}
- alert: TonnageControllerDown
  expr: absent(up{ {{- $controller -}} } == 1)
  for: 10m
  labels: {severity: warning}
  annotations:
    summary: No Tonnage controller is running
    description: No loads, cleanups or status updates take place. Running pods are not affected. Check the Deployment {{ include "tonnage.controllerName" . }}.
- alert: TonnageWebhookDown
  expr: absent(up{ {{- $webhook -}} } == 1)
  for: 2m
  labels: {severity: critical}
  annotations:
    summary: No Tonnage webhook is running
    description: Annotated pods are not admitted. Check the Deployment {{ include "tonnage.webhookName" . }}.
- alert: TonnageWebhookUnreachable
  expr: sum(rate(apiserver_admission_webhook_rejection_count{name="inject.tonnage.dev", error_type="calling_webhook_error"}[5m])) > 0
  for: 5m
  labels: {severity: critical}
  annotations:
    summary: The API server can't call the Tonnage webhook
    description: Annotated pods are not admitted. Check the Service, network policies, and the certificate.
- alert: TonnageAdmissionErrors
  expr: sum(rate(tonnage_admission_requests_total{result="error"}[5m])) > 0
  for: 10m
  labels: {severity: warning}
  annotations:
    summary: The Tonnage webhook fails to admit pods
    description: Annotated pods are rejected because of internal errors, not because of their annotations. See the webhook's log.
- alert: TonnageModelNotReady
  expr: max by (namespace, name) (tonnage_condition{type="Ready", status="True"}) == 0
  for: 30m
  labels: {severity: warning}
  annotations:
    summary: {{ `ModelWeights {{ $labels.namespace }}/{{ $labels.name }} is not ready` }}
    description: {{ `Pods can't use it. kubectl describe modelweights -n {{ $labels.namespace }} {{ $labels.name }} shows the reason.` }}
- alert: TonnageNodesFailing
  expr: max by (namespace, name) (tonnage_failed_nodes) > 0
  for: 30m
  labels: {severity: warning}
  annotations:
    summary: {{ `Nodes failed to load ModelWeights {{ $labels.namespace }}/{{ $labels.name }}` }}
    description: {{ `The last load failed on {{ $value }} nodes. kubectl describe modelweights -n {{ $labels.namespace }} {{ $labels.name }} lists them.` }}
- alert: TonnageCertificateEnds
  expr: min by (namespace, service) (tonnage_certificate_expiry_timestamp_seconds > 0) - time() < 1209600
  labels: {severity: warning}
  annotations:
    summary: {{ `The certificate of {{ $labels.service }} expires within two weeks` }}
    description: {{ `It expires in {{ $value | humanizeDuration }}. Then the API server or loaders will reject it.` }}
- alert: TonnageCertificateNotTakenUp
  expr: sum by (namespace, pod) (increase(tonnage_certificate_reload_total{result="failure"}[15m])) > 0
  labels: {severity: warning}
  annotations:
    summary: Tonnage failed to reload a certificate
    description: {{ `The new certificate in the Secret is invalid. Pod {{ $labels.pod }} continues with the old one. Check the Secret.` }}
{{- end -}}
