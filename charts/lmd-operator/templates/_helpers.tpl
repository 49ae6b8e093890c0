{{- /* Every name, label and annotation of the chart comes from here. */ -}}

{{- define "lmd-operator.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- /* Release and chart name, or the release name alone when it contains the chart's. */ -}}
{{- define "lmd-operator.fullname" -}}
{{- $name := include "lmd-operator.name" . }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- /* Cluster-wide names also say the namespace, so that two releases of one name do not meet; roles may
have long names. */ -}}
{{- define "lmd-operator.clusterName" -}}
{{- printf "%s-%s" .Release.Namespace (include "lmd-operator.fullname" .) }}
{{- end }}

{{- /* What selectors use: never changes within a release. */ -}}
{{- define "lmd-operator.selector" -}}
app.kubernetes.io/name: {{ include "lmd-operator.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "lmd-operator.labels" -}}
{{ include "lmd-operator.selector" . }}
app.kubernetes.io/component: operator
app.kubernetes.io/part-of: lmd
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
{{- end }}

{{- define "lmd-operator.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "lmd-operator.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- required "serviceAccount.name is needed when serviceAccount.create is false" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "lmd-operator.image" -}}
{{- if .Values.image.digest }}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest }}
{{- else }}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) }}
{{- end }}
{{- end }}

{{- define "lmd-operator.workerImage" -}}
{{- default (printf "lmd-worker:%s" .Chart.AppVersion) .Values.settings.workerImage }}
{{- end }}

{{- define "lmd-operator.subjects" -}}
- kind: ServiceAccount
  name: {{ include "lmd-operator.serviceAccount" . }}
  namespace: {{ .Release.Namespace }}
{{- end }}
