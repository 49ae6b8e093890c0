{{- /*
Every right of the operator, and nothing else. Objects are written by server-side apply, which is `patch` of an object that
exists and needs `create` besides when it does not.
*/ -}}

{{- /* In every namespace it looks after. */ -}}
{{- define "lmd-operator.rules" -}}
# get: before children that vanished are made anew, it asks whether their object is still there
- apiGroups: [largemodel.dev]
  resources: [largemodeldeployments]
  verbs: [get, list, watch]
# its answer is the status alone; spec and metadata are never written
- apiGroups: [largemodel.dev]
  resources: [largemodeldeployments/status]
  verbs: [patch]
# never sent; asked for by clusters that check who may set blockOwnerDeletion (OwnerReferencesPermissionEnforcement)
- apiGroups: [largemodel.dev]
  resources: [largemodeldeployments/finalizers]
  verbs: [update]
# delete: children that are no longer wanted
- apiGroups: [""]
  resources: [configmaps, services]
  verbs: [list, watch, create, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [list, watch, create, patch, delete]
- apiGroups: [networking.k8s.io]
  resources: [networkpolicies]
  verbs: [list, watch, create, patch, delete]
# no delete: a Deployment goes with its object, by the garbage collector
- apiGroups: [apps]
  resources: [deployments]
  verbs: [list, watch, create, patch]
# fill and clear shared claims; patch also lets a Job run that waited for the end of its object
- apiGroups: [batch]
  resources: [jobs]
  verbs: [list, watch, create, patch, delete]
# why a replica does not answer is read from its pod
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch]
# patch counts up the series of an Event that is told again
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end }}

{{- /* In its own namespace. */ -}}
{{- define "lmd-operator.leaseRules" -}}
# create cannot be limited to a name: an object that does not exist yet has none
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  verbs: [create]
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  resourceNames: [{{ include "lmd-operator.fullname" . }}]
  verbs: [get, update]
{{- end }}
