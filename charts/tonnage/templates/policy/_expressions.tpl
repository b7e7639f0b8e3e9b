{{/*
Parts of the policies. All lists are JSON, which CEL reads.
*/}}

{{/* The folders of the cache on nodes. */}}
{{- define "tonnage.policyRoots" -}}
{{- $roots := list -}}
{{- range list .Values.cache.memory .Values.cache.disk -}}
{{- if .enabled -}}{{- $roots = append $roots .hostPath -}}{{- end -}}
{{- end -}}
{{- toJson $roots -}}
{{- end -}}

{{/* What a folder of the cache contains: entries of namespaces, and with cache.sharing Cluster shared ones. */}}
{{- define "tonnage.policyEntry" -}}
{{- ternary "('^(' + request.namespace + '/)?" "('^' + request.namespace + '/" (eq .Values.cache.sharing "Cluster") -}}
r-[0-9a-f]{12,64}(-[a-z-]+)?$')
{{- end -}}

{{/* A namespace's folder for artifacts, below that of the medium Disk. */}}
{{- define "tonnage.policyArtifacts" -}}
{{- if and .Values.artifacts.enabled .Values.cache.disk.enabled -}}
{{- $before := printf "%s + '/' + request.namespace + '/'" (squote .Values.cache.disk.hostPath) -}}
{{- printf "v.hostPath.path.startsWith(%s) && v.hostPath.path.substring(size(%s)).matches('^a-[0-9a-f]{32}$')" $before $before -}}
{{- else -}}
false
{{- end -}}
{{- end -}}

{{/* The arguments that loaders have. */}}
{{- define "tonnage.policyArguments" -}}
{{- list "load" "resolve" "rm" "--cache" "/cache" "--termination-log" "/dev/termination-log" "--progress" "off"
    "--on-failure" "continue" "--status-file" "/run/tonnage/status" "--ignore-not-found"
    "--stream" "--hold" "--ready-file" "/run/tonnage/ready" "--loaded-file" "/run/tonnage/loaded" "--artifacts"
    "--plugin" "/run/tonnage/plugin" | toJson -}}
{{- end -}}

{{/* The environment variables that loaders have: Tonnage's, and those of cloud identities. */}}
{{- define "tonnage.policyEnvironment" -}}
{{- concat (list "TONNAGE_PLAN" "TONNAGE_NODE" "TONNAGE_POD" "TONNAGE_URLS" "AWS_ACCESS_KEY_ID" "AWS_SECRET_ACCESS_KEY"
    "AWS_SESSION_TOKEN" "AWS_REGION" "AWS_DEFAULT_REGION" "AWS_ROLE_ARN" "AWS_WEB_IDENTITY_TOKEN_FILE"
    "AWS_STS_REGIONAL_ENDPOINTS" "AWS_CONTAINER_CREDENTIALS_FULL_URI" "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE")
    (ternary (list "TONNAGE_CA_PEM" "TMPDIR") list (ne .Values.loader.caBundle "")) .Values.policy.loaderEnvironment | toJson -}}
{{- end -}}

{{/* The capabilities of the Pod Security Standard baseline, and those of the administrator. */}}
{{- define "tonnage.policyCapabilities" -}}
{{- concat (list "AUDIT_WRITE" "CHOWN" "DAC_OVERRIDE" "FOWNER" "FSETID" "KILL" "MKNOD" "NET_BIND_SERVICE" "SETFCAP"
    "SETGID" "SETPCAP" "SETUID" "SYS_CHROOT") .Values.policy.capabilities | toJson -}}
{{- end -}}

{{/* A text of several lines, as a literal of CEL that is in one line of YAML. */}}
{{- define "tonnage.celString" -}}
{{- . | toJson -}}
{{- end -}}

{{/* A binding of a policy. Takes root, name. */}}
{{- define "tonnage.policyBinding" -}}
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata:
  name: {{ .name }}
  {{- include "tonnage.metadata" (dict "root" .root) | nindent 2 }}
spec:
  policyName: {{ .name }}
  validationActions: [Deny]
  matchResources:
    namespaceSelector:
      {{- with .root.Values.policy.namespaceSelector.matchLabels }}
      matchLabels:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      matchExpressions:
      # Cleanup Jobs run in the release's namespace and mount entries of all others.
      - {key: kubernetes.io/metadata.name, operator: NotIn, values: [{{ .root.Release.Namespace }}]}
      {{- with .root.Values.policy.namespaceSelector.matchExpressions }}
      {{- toYaml . | nindent 6 }}
      {{- end }}
{{- end -}}
