{{/* What every object of `helm test` says. Takes (dict "root" $ "weight" "0"). */}}
{{- define "mesh.tests.hook" -}}
helm.sh/hook: test
helm.sh/hook-weight: {{ .weight | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end -}}

{{/* A pod that runs files/meshtest.py. Takes (dict "root" $ "account" "..." "do" "serve"). */}}
{{- define "mesh.tests.pod" -}}
serviceAccountName: {{ .account }}
automountServiceAccountToken: false
{{- include "mesh.pullSecrets" .root | nindent 0 }}
securityContext:
  runAsNonRoot: true
  runAsUser: 65534
  seccompProfile:
    type: RuntimeDefault
containers:
  - name: {{ .do }}
    image: {{ include "mesh.image" .root }}
    imagePullPolicy: {{ .root.Values.image.pullPolicy }}
    command: [python3, /test/meshtest.py, {{ .do }}]
    env:
      - {name: NAME, value: mesh-test-server.service.mesh}
      - {name: PORT, value: "8080"}
      - {name: ROOTS, value: /roots/roots.pem}
      - {name: PYTHONUNBUFFERED, value: "1"}
    {{- if eq .do "serve" }}
    ports:
      - {name: http, containerPort: 8080}
    readinessProbe:
      httpGet:
        path: /
        port: http
      periodSeconds: 1
    {{- end }}
    resources:
      requests: {cpu: 10m, memory: 32Mi}
      limits: {memory: 64Mi}
    securityContext:
      {{- include "mesh.containerSecurityContext" .root | nindent 6 }}
    volumeMounts:
      - {name: test, mountPath: /test, readOnly: true}
      - {name: roots, mountPath: /roots, readOnly: true}
volumes:
  - name: test
    configMap:
      name: mesh-test
  - name: roots
    configMap:
      name: mesh-ca-bundle
{{- end -}}
