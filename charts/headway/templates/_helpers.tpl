{{/* Names, labels and checks that several templates share. */}}

{{- define "headway.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Name of what belongs to the operator's pods. 40 characters before it leave room for every ending used. */}}
{{- define "headway.operator" -}}
{{- include "headway.fullname" . -}}-operator
{{- end -}}

{{- define "headway.lease" -}}
{{- .Values.leaderElection.leaseName | default (include "headway.fullname" .) -}}
{{- end -}}

{{- define "headway.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "headway.operator" .) -}}
{{- else -}}
{{- .Values.serviceAccount.name | default "default" -}}
{{- end -}}
{{- end -}}

{{/* They never change: a Deployment's selector is immutable. */}}
{{- define "headway.selector" -}}
app.kubernetes.io/name: headway
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end -}}

{{/*
Labels of an object: call with a dict of `root`, `component` and, where there are any, `extra` labels. Where a key
is given twice, the chart's own label wins, then the more particular one.
*/}}
{{- define "headway.labels" -}}
{{- $root := .root -}}
{{- $own := dict
  "app.kubernetes.io/name" "headway"
  "app.kubernetes.io/instance" $root.Release.Name
  "app.kubernetes.io/version" $root.Chart.AppVersion
  "app.kubernetes.io/managed-by" $root.Release.Service
  "app.kubernetes.io/part-of" "headway"
  "app.kubernetes.io/component" .component
  "helm.sh/chart" (printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-")
-}}
{{- merge $own (.extra | default dict) $root.Values.commonLabels | toYaml -}}
{{- end -}}

{{/* Reference of an image: call with a dict of `image` and `version`. */}}
{{- define "headway.image" -}}
{{- if .image.digest -}}
{{- printf "%s@%s" .image.repository .image.digest -}}
{{- else -}}
{{- printf "%s:%s" .image.repository (.image.tag | default .version) -}}
{{- end -}}
{{- end -}}

{{/* The fixed part of it is what the restricted Pod Security Standard asks for. */}}
{{- define "headway.podSecurityContext" -}}
runAsNonRoot: true
{{- if not (kindIs "invalid" .Values.podSecurity.runAsUser) }}
runAsUser: {{ int64 .Values.podSecurity.runAsUser }}
{{- end }}
{{- if not (kindIs "invalid" .Values.podSecurity.runAsGroup) }}
runAsGroup: {{ int64 .Values.podSecurity.runAsGroup }}
{{- end }}
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "headway.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* Values that contradict each other are refused before anything is written. */}}
{{- define "headway.check" -}}
{{- if and (gt (int .Values.replicas) 1) (not .Values.leaderElection.enabled) -}}
{{- fail "replicas is above 1, but leaderElection.enabled is false: two operators would write against each other; set replicas to 1 or leaderElection.enabled to true" -}}
{{- end -}}
{{- if gt (int .Values.wake.firstPort) (int .Values.wake.lastPort) -}}
{{- fail "wake.firstPort is above wake.lastPort; write the first and the last of the ports, such as 9100 and 9599" -}}
{{- end -}}
{{- if and .Values.tail.podMonitors .Values.rbac.create (not .Values.rbac.podMonitors) -}}
{{- fail "tail.podMonitors is true, but rbac.podMonitors is false: the operator could not write PodMonitors; set rbac.podMonitors to true" -}}
{{- end -}}
{{- end -}}
