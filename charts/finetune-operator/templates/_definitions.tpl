{{- define "finetune.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 50 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- /* Of what lies outside of the release's namespace: two releases of one name in two namespaces don't share it. */ -}}
{{- define "finetune.clusterName" -}}
{{ .Release.Namespace }}-{{ include "finetune.name" . }}
{{- end }}

{{- define "finetune.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "finetune.labels" -}}
{{ include "finetune.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "finetune.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (include "finetune.name" .) }}
{{- end }}

{{- /* An image as it was given; without a tag or digest it is the one that was released with this chart; none stays none. */ -}}
{{- define "finetune.image" -}}
{{- $last := last (splitList "/" .image) -}}
{{- if or (not .image) (contains ":" $last) (contains "@" $last) }}{{ .image }}{{ else }}{{ .image }}:{{ .root.Chart.AppVersion }}{{ end }}
{{- end }}

{{- /* All that the operator does, and nothing else: tests/integration runs it with exactly these and counts refusals. */ -}}
{{- define "finetune.rules" -}}
- apiGroups: [finetune.dev]
  resources: [finetunejobs]            # deleted by spec.ttlSecondsAfterFinished alone
  verbs: [get, list, watch, delete]
- apiGroups: [finetune.dev]
  resources: [modelserves]            # handed over to by a FineTuneJob: server-side apply creates, too
  verbs: [get, list, watch, create, patch]
- apiGroups: [finetune.dev]
  resources: [finetunejobs/status, modelserves/status]
  verbs: [update]
- apiGroups: [finetune.dev]
  resources: [finetunejobs/finalizers, modelserves/finalizers]   # owner references that block deletion, where the cluster checks them
  verbs: [update]
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [apps]
  resources: [deployments]
  verbs: [list, watch, create, patch, delete]
- apiGroups: [apps]
  resources: [controllerrevisions]    # how each revision of a ModelServe was rendered
  verbs: [get, list, watch, create, delete]
- apiGroups: [""]
  resources: [services]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [pods]                   # patched: an annotation of those that keep adapters, so that their kubelets look at the list at once
  verbs: [list, watch, patch]
- apiGroups: [""]
  resources: [pods/log]
  verbs: [get]
- apiGroups: [""]
  resources: [configmaps]             # patched: the one that a ModelServe's pods read, which says which adapters they are to have
  verbs: [get, list, watch, create, patch]
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [get, create]
- apiGroups: [""]
  resources: [secrets]                # by name, to tell of a missing one before a pod waits for it; never listed
  verbs: [get]
- apiGroups: [networking.k8s.io]     # what stands around the pods of a ModelServe
  resources: [networkpolicies]
  verbs: [list, watch, create, patch, delete]
- apiGroups: [autoscaling]
  resources: [horizontalpodautoscalers]
  verbs: [list, watch, create, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [list, watch, create, patch, delete]
- apiGroups: [gateway.networking.k8s.io]   # where spec.route of a ModelServe asks for one
  resources: [httproutes]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [kueue.x-k8s.io]
  resources: [localqueues]            # by name, to tell of one that a waiting job names and that is not there
  verbs: [get]
- apiGroups: [events.k8s.io]
  resources: [events]                  # listed for one Job whose pod somebody refuses, to tell who and why
  verbs: [create, list]
{{- end }}

{{- /* The version in which Kueue's kinds are made; none where there is no Kueue. */ -}}
{{- define "finetune.kueue" -}}
{{- if .Capabilities.APIVersions.Has "kueue.x-k8s.io/v1beta2/WorkloadPriorityClass" }}kueue.x-k8s.io/v1beta2
{{- else if or .Values.kueue.always (.Capabilities.APIVersions.Has "kueue.x-k8s.io/v1beta1/WorkloadPriorityClass") }}kueue.x-k8s.io/v1beta1
{{- end }}
{{- end }}

{{- /* Name of the WorkloadPriorityClass of later stages; none where none is made. */ -}}
{{- define "finetune.laterStages" -}}
{{- if and .Values.kueue.laterStagesPriority (include "finetune.kueue" .) }}{{ include "finetune.clusterName" . }}-later-stages{{ end }}
{{- end }}

{{- /* Whether to make objects of a kind of the Prometheus operator: (list . "PodMonitor"). */ -}}
{{- define "finetune.knows" -}}
{{- $root := first . -}}
{{- if or $root.Values.metrics.always ($root.Capabilities.APIVersions.Has (printf "monitoring.coreos.com/v1/%s" (last .))) }}yes{{ end }}
{{- end }}

{{- /* The port that a URL leads to. */ -}}
{{- define "finetune.portOf" -}}
{{- $url := urlParse . -}}
{{- if contains ":" $url.host }}{{ last (splitList ":" $url.host) }}{{ else if eq $url.scheme "https" }}443{{ else }}80{{ end }}
{{- end }}

{{- define "finetune.dns" -}}
- {port: 53, protocol: UDP}
- {port: 53, protocol: TCP}
{{- end }}
