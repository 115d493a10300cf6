//! Names, labels and annotations that belong to the operator.

/// Field manager of the objects a SplitModel owns.
pub const OBJECTS_MANAGER: &str = "headway-operator";
/// Field manager that keeps the number of pods while somebody else takes over deciding on it.
pub const HANDOVER_MANAGER: &str = "headway-operator-handover";
/// Field manager of a SplitModel's status.
pub const STATUS_MANAGER: &str = "headway-operator-status";
/// Field manager of the savings in a SplitModel's status.
pub const SAVINGS_MANAGER: &str = "headway-operator-savings";
/// Keeps a SplitModel until its pods have drained.
pub const FINALIZER: &str = "headway.dev/drain";
/// On an owned object: digest of what was applied.
pub const APPLIED_ANNOTATION: &str = "headway.dev/applied";
/// On a SplitModel: `"true"` stops the operator from changing anything for it.
pub const PAUSED_ANNOTATION: &str = "headway.dev/paused";
/// On every owned object and pod: the SplitModel's name.
pub const SPLITMODEL_LABEL: &str = "headway.dev/splitmodel";
/// Selects every object of every SplitModel.
pub const OWNED_SELECTOR: &str = "app.kubernetes.io/managed-by=headway-operator";
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

/// Name of the Service that gives each tail pod an address of its own.
#[must_use]
pub fn headless_service(splitmodel: &str) -> String {
    format!("{splitmodel}-tail-pods")
}
