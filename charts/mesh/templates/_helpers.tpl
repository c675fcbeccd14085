{{/* Prefix of every name: the release's. */}}
{{- define "mesh.fullname" -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* Labels of an object. Takes (dict "root" $ "component" "injector"). */}}
{{- define "mesh.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name (.root.Chart.Version | replace "+" "_") }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/part-of: mesh
{{ include "mesh.selectorLabels" . }}
{{- end -}}

{{/* What tells a component's pods from others; never changes. */}}
{{- define "mesh.selectorLabels" -}}
app.kubernetes.io/name: mesh
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "mesh.image" -}}
{{ printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion | replace "+" "-") }}
{{- end -}}

{{- define "mesh.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* Pod Security level `restricted`. */}}
{{- define "mesh.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: 5995
runAsGroup: 5995
fsGroup: 5995
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "mesh.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* Replicas on different nodes and zones as far as there are some; one revision at a time, so that an upgrade can surge. */}}
{{- define "mesh.topologySpread" -}}
{{- $labels := include "mesh.selectorLabels" . -}}
{{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
- maxSkew: 1
  topologyKey: {{ . }}
  whenUnsatisfiable: ScheduleAnyway
  matchLabelKeys: [pod-template-hash]
  labelSelector:
    matchLabels:
      {{- $labels | nindent 6 }}
{{- end }}
{{- end -}}

{{/* What proves a pod of ours to the node's agent, and what it believes. Takes (dict "bundle" "required"), or "optional": the pod does not wait for it. */}}
{{- define "mesh.agentVolumes" -}}
- name: mesh-token
  projected:
    sources:
      - serviceAccountToken:
          audience: mesh
          expirationSeconds: 3600
          path: token
- name: mesh-ca-bundle
  configMap:
    name: mesh-ca-bundle
    {{- if eq .bundle "optional" }}
    optional: true
    {{- end }}
{{- end -}}

{{- define "mesh.agentMounts" -}}
- name: mesh-token
  mountPath: /var/run/secrets/mesh.openmesh.io
  readOnly: true
- name: mesh-ca-bundle
  mountPath: /mesh-ca
  readOnly: true
{{- end -}}

{{- define "mesh.podEnv" -}}
- name: MESH_NODE_IP
  valueFrom:
    fieldRef:
      fieldPath: status.hostIP
- name: MESH_POD_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
- name: MESH_POD_NAMESPACE
  valueFrom:
    fieldRef:
      fieldPath: metadata.namespace
{{- end -}}

{{/* Health on the operations port, the same for every deployment of ours. */}}
{{- define "mesh.probes" -}}
startupProbe:
  httpGet:
    path: /healthz
    port: operations
  periodSeconds: 1
  failureThreshold: 120
livenessProbe:
  httpGet:
    path: /healthz
    port: operations
  periodSeconds: 10
  failureThreshold: 6
  timeoutSeconds: 5
readinessProbe:
  httpGet:
    path: /readyz
    port: operations
  periodSeconds: 2
  timeoutSeconds: 2
{{- end -}}
