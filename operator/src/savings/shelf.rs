//! The [`Books`] of all SplitModels. The watch of pods writes into them, before any cache shows the change; scrapes
//! and writes read and write them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, Pod};
use kube::ResourceExt as _;

use super::books::Books;
use super::counters::{Reading, read_last_words};
use crate::names;

/// A SplitModel's namespace and name.
pub type Key = (String, String);

/// The books of all SplitModels.
#[derive(Debug, Default)]
pub struct Shelf {
    books: Mutex<BTreeMap<Key, Books>>,
}

impl Shelf {
    /// A pod was created, changed or deleted.
    pub fn saw(&self, pod: &Pod) {
        if let (Some(key), Some(uid)) = (key_of(pod), pod.uid()) {
            let words = last_words(pod);
            let mut books = self.lock();
            let books = books.entry(key).or_default();
            books.saw(&uid, &pod.name_any(), &words, Instant::now());
        }
    }

    /// A pod of `key` answered.
    pub fn scraped(&self, key: &Key, uid: &str, reading: Reading) {
        if let Some(books) = self.lock().get_mut(key) {
            books.scraped(uid, reading);
        }
    }

    /// Runs `f` on the books of `key`.
    pub fn with<R>(&self, key: &Key, f: impl FnOnce(&mut Books) -> R) -> R {
        f(self.lock().entry(key.clone()).or_default())
    }

    /// Forgets SplitModels that are not in `present`.
    pub fn keep(&self, present: &BTreeSet<Key>) {
        self.lock().retain(|key, _| present.contains(key));
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, Books>> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Which SplitModel a pod belongs to.
#[must_use]
pub fn key_of(pod: &Pod) -> Option<Key> {
    let name = pod.labels().get(names::SPLITMODEL_LABEL)?;
    Some((pod.namespace()?, name.clone()))
}

/// The status of the tail's container.
#[must_use]
pub fn tail_container(pod: &Pod) -> Option<&ContainerStatus> {
    let status = pod.status.as_ref()?;
    let mut containers = status.container_statuses.iter().flatten();
    containers.find(|container| container.name == names::TAIL)
}

/// What a pod's status says of runs that have ended: the present one, and the one before.
fn last_words(pod: &Pod) -> Vec<Reading> {
    let words = |state: &Option<ContainerState>| {
        let ended = state.as_ref()?.terminated.as_ref()?;
        read_last_words(ended.message.as_deref()?)
    };
    let Some(container) = tail_container(pod) else {
        return Vec::new();
    };
    let states = [&container.last_state, &container.state];
    states.into_iter().filter_map(words).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn last_words_of_both_states_are_read_and_those_of_other_containers_are_not() {
        let ended = |start: u32, busy: u32| {
            let message = format!("{{\"start_time_seconds\":{start},\"busy_seconds\":{busy}}}\n");
            json!({"terminated": {"exitCode": 137, "message": message}})
        };
        let pod = json!({
            "metadata": {"name": "smol-tail-a", "namespace": "ml", "uid": "u",
                "labels": {"headway.dev/splitmodel": "smol"}},
            "status": {"containerStatuses": [
                {"name": "sidecar", "ready": true, "restartCount": 0, "image": "", "imageID": "",
                 "state": ended(1, 1)},
                {"name": "tail", "ready": false, "restartCount": 1, "image": "", "imageID": "",
                 "state": ended(30, 7), "lastState": ended(20, 9)},
            ]},
        });
        let pod: Pod = serde_json::from_value(pod).unwrap();
        let words: Vec<_> = last_words(&pod)
            .iter()
            .map(|words| (words.started_ms, words.counters.used_us))
            .collect();
        assert_eq!(words, [(20_000, 9_000_000), (30_000, 7_000_000)]);
        assert_eq!(key_of(&pod), Some(("ml".to_owned(), "smol".to_owned())));
    }
}
