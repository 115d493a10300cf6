//! What keeps a pod from running, in the words of the kubelet or the scheduler. Pure.

use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodStatus};
use kube::ResourceExt as _;

use crate::savings::counters::read_last_words;

/// The most characters of a message that reach a condition.
const MAX_MESSAGE_CHARS: usize = 512;

/// What keeps a pod from running. Ordered by how far from running the pod is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodProblem {
    gravity: Gravity,
    /// A condition's reason.
    pub reason: String,
    /// Names the pod, and repeats what was said about it.
    pub message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Gravity {
    Unschedulable,
    Waiting,
    Crashing,
}

impl PodProblem {
    /// False for a pod that only waits for a node: one may be on its way.
    #[must_use]
    pub fn is_failure(&self) -> bool {
        self.gravity > Gravity::Unschedulable
    }

    /// `None` for a pod that runs, or is on its way.
    #[must_use]
    pub fn of(pod: &Pod) -> Option<Self> {
        let status = pod.status.as_ref()?;
        let name = pod.name_any();
        let (gravity, reason, said) = crashing(status)
            .or_else(|| waiting(status))
            .or_else(|| unschedulable(status))?;
        let said: String = said.chars().take(MAX_MESSAGE_CHARS).collect();
        Some(Self {
            gravity,
            reason,
            message: format!("pod {name}: {said}"),
        })
    }
}

type Found = (Gravity, String, String);

/// A container that ended with an error and waits to be started again; its last words say more than the wait.
fn crashing(status: &PodStatus) -> Option<Found> {
    let container = containers(status).find(|container| {
        let waiting = container
            .state
            .as_ref()
            .and_then(|state| state.waiting.as_ref());
        waiting.is_some_and(|waiting| waiting.reason.as_deref() == Some("CrashLoopBackOff"))
    })?;
    let last = container
        .last_state
        .as_ref()
        .and_then(|state| state.terminated.as_ref());
    let said = match last {
        Some(ended) => {
            let words = last_words(ended.message.as_deref().unwrap_or_default());
            format!("ended with exit code {}: {words}", ended.exit_code)
        }
        None => "ends at once, again and again".to_owned(),
    };
    Some((Gravity::Crashing, "CrashLoopBackOff".to_owned(), said))
}

/// The error in a tail's termination message, which is JSON; anything else as it is. A tail that was killed leaves
/// what it had counted, and no error.
fn last_words(message: &str) -> String {
    if read_last_words(message).is_some_and(|_| !message.contains("\"error\":")) {
        return "it was killed, or ended without an error".to_owned();
    }
    let line = message.lines().next().unwrap_or_default();
    let json: Option<serde_json::Value> = serde_json::from_str(line).ok();
    let error = json.as_ref().and_then(|json| json.get("error")?.as_str());
    error.unwrap_or(message).trim().to_owned()
}

/// A container that cannot start: no image, no Secret, no volume.
fn waiting(status: &PodStatus) -> Option<Found> {
    let mut reasons =
        containers(status).filter_map(|container| container.state.as_ref()?.waiting.as_ref());
    let waiting = reasons.find(|waiting| {
        !matches!(
            waiting.reason.as_deref(),
            None | Some("ContainerCreating" | "PodInitializing")
        )
    })?;
    Some((
        Gravity::Waiting,
        waiting.reason.clone()?,
        waiting.message.clone().unwrap_or_default(),
    ))
}

fn unschedulable(status: &PodStatus) -> Option<Found> {
    let conditions = status.conditions.as_ref()?;
    let scheduled = conditions
        .iter()
        .find(|condition| condition.type_ == "PodScheduled" && condition.status == "False")?;
    let said = scheduled.message.clone().unwrap_or_default();
    Some((Gravity::Unschedulable, "Unschedulable".to_owned(), said))
}

fn containers(status: &PodStatus) -> impl Iterator<Item = &ContainerStatus> {
    status.container_statuses.iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(status: serde_json::Value) -> Option<PodProblem> {
        let pod = serde_json::json!({"metadata": {"name": "smol-tail-0"}, "status": status});
        PodProblem::of(&serde_json::from_value(pod).unwrap())
    }

    #[test]
    fn running_and_starting_pods_have_none() {
        let running = serde_json::json!({"containerStatuses": [
            {"name": "tail", "ready": true, "restartCount": 0, "image": "", "imageID": "", "state": {"running": {}}}
        ]});
        assert_eq!(problem(running), None);
        let starting = serde_json::json!({"containerStatuses": [
            {"name": "tail", "ready": false, "restartCount": 0, "image": "", "imageID": "",
             "state": {"waiting": {"reason": "ContainerCreating"}}}
        ]});
        assert_eq!(problem(starting), None);
    }

    #[test]
    fn last_words_of_a_crashing_tail_are_told() {
        let status = serde_json::json!({"containerStatuses": [
            {"name": "tail", "ready": false, "restartCount": 3, "image": "", "imageID": "",
             "state": {"waiting": {"reason": "CrashLoopBackOff"}},
             "lastState": {"terminated": {"exitCode": 1, "message": "{\"error\":\"no layer 40\",\"tokens\":{}}\n"}}}
        ]});
        let problem = problem(status).unwrap();
        assert_eq!(problem.reason, "CrashLoopBackOff");
        assert_eq!(
            problem.message,
            "pod smol-tail-0: ended with exit code 1: no layer 40"
        );
    }

    #[test]
    fn words_that_are_not_a_tails_are_told_as_they_are() {
        assert_eq!(last_words("killed\n"), "killed");
        assert_eq!(last_words("{\"tokens\":1}"), "{\"tokens\":1}");
    }

    #[test]
    fn counters_of_a_killed_tail_are_no_error() {
        let words = "{\"start_time_seconds\":1,\"busy_seconds\":2}\n";
        assert_eq!(
            last_words(words),
            "it was killed, or ended without an error"
        );
    }

    #[test]
    fn missing_image_and_missing_node_are_told_and_ordered() {
        let image = problem(serde_json::json!({"containerStatuses": [
            {"name": "tail", "ready": false, "restartCount": 0, "image": "", "imageID": "",
             "state": {"waiting": {"reason": "ErrImagePull", "message": "not found"}}}
        ]}))
        .unwrap();
        assert_eq!(image.reason, "ErrImagePull");
        let node = problem(serde_json::json!({"conditions": [
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}
        ]}))
        .unwrap();
        assert_eq!(node.reason, "Unschedulable");
        assert!(node < image);
    }
}
