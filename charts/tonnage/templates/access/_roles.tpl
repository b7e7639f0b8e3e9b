{{/* A role of files/rbac, which hack/chart/sync.py copies from operator/rbac. Takes root, component and, for hooks, hook. */}}
{{- define "tonnage.role" -}}
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata:
  name: {{ printf "%s-%s" (include "tonnage.fullname" .root) .component }}
  {{- include "tonnage.metadata" (dict "root" .root "component" .component "annotations" .hook) | nindent 2 }}
rules:
{{- .root.Files.Get (printf "files/rbac/%s.yaml" .component) | fromYaml | dig "rules" list | toYaml | nindent 0 }}
{{- end -}}

{{/* Takes root, component, account and, for hooks, hook. */}}
{{- define "tonnage.roleBinding" -}}
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata:
  name: {{ printf "%s-%s" (include "tonnage.fullname" .root) .component }}
  {{- include "tonnage.metadata" (dict "root" .root "component" .component "annotations" .hook) | nindent 2 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: ClusterRole
  name: {{ printf "%s-%s" (include "tonnage.fullname" .root) .component }}
subjects:
{{- if .account }}
- kind: ServiceAccount
  name: {{ .account }}
  namespace: {{ .root.Release.Namespace }}
{{- else }} []
{{- end }}
{{- end -}}
