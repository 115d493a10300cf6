//! Names, labels and annotations that belong to the operator.

/// Field manager of the objects a SplitModel owns.
pub const OBJECTS_MANAGER: &str = "headway-operator";
/// Field manager that keeps the number of pods while somebody else takes over deciding on it.
pub const HANDOVER_MANAGER: &str = "headway-operator-handover";
/// Field manager of a SplitModel's status.
pub const STATUS_MANAGER: &str = "headway-operator-status";
/// Field manager of the savings in a SplitModel's status.
pub const SAVINGS_MANAGER: &str = "headway-operator-savings";
/// Field manager of annotations of pods: who goes first, and how many sessions each should have.
pub const SCALING_MANAGER: &str = "headway-operator-scaling";
/// Keeps a SplitModel until its pods have drained.
pub const FINALIZER: &str = "headway.dev/drain";
/// On an owned object: digest of what was applied.
pub const APPLIED_ANNOTATION: &str = "headway.dev/applied";
/// On a Deployment: the `spec.replicas` of the SplitModel that its number of pods came from at first.
pub const ASKED_ANNOTATION: &str = "headway.dev/asked-replicas";
/// On a pod: how many sessions its tail should have at most; it asks the others to move.
pub const SESSION_TARGET_ANNOTATION: &str = "headway.dev/session-target";
/// On a pod, Kubernetes' own: of a ReplicaSet, those with the lowest number go first.
pub const DELETION_COST_ANNOTATION: &str = "controller.kubernetes.io/pod-deletion-cost";
/// On a tail pod, as a label: digest of the template it was made from.
pub const TEMPLATE_LABEL: &str = "headway.dev/template";
/// On a Deployment: digest of the template whose pods failed, so that it is not tried again. Removing it tries again.
pub const STOPPED_ANNOTATION: &str = "headway.dev/stopped-template";
/// On a Deployment: why the rollout of that template was stopped.
pub const STOPPED_BECAUSE_ANNOTATION: &str = "headway.dev/stopped-because";
/// On a Deployment: digest of the template that serves in place of a stopped one.
pub const HELD_ANNOTATION: &str = "headway.dev/held-template";
/// On a SplitModel: `"true"` stops the operator from changing anything for it.
pub const PAUSED_ANNOTATION: &str = "headway.dev/paused";
/// On every owned object and pod: the SplitModel's name.
pub const SPLITMODEL_LABEL: &str = "headway.dev/splitmodel";
/// Selects every object of every SplitModel.
pub const OWNED_SELECTOR: &str = "app.kubernetes.io/managed-by=headway-operator";
/// Selects the EndpointSlices that the operator made.
pub const OWN_SLICES_SELECTOR: &str = "endpointslice.kubernetes.io/managed-by=headway-operator";
/// Value of `app.kubernetes.io/managed-by`.
pub const MANAGED_BY: &str = "headway-operator";
/// The name of a tail's container and of its port.
pub const TAIL: &str = "tail";
/// The port a tail listens on.
pub const TAIL_PORT: i32 = 8089;

/// Name of most owned objects. The CRD bounds a SplitModel's name to 52 characters, so that this and
/// [`headless_service`] stay below the 63 of a DNS label.
#[must_use]
pub fn owned(splitmodel: &str) -> String {
    format!("{splitmodel}-tail")
}

/// Name of the EndpointSlice by which the operator answers for tails that are not there.
#[must_use]
pub fn door(splitmodel: &str) -> String {
    format!("{splitmodel}-tail-door")
}

/// Name of the Service that gives each tail pod an address of its own.
#[must_use]
pub fn headless_service(splitmodel: &str) -> String {
    format!("{splitmodel}-tail-pods")
}
