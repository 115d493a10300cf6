//! Which pods go when there are to be fewer.

use std::collections::BTreeSet;

/// A pod that may go.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// Its name.
    pub name: &'a str,
    /// Whether it takes sessions.
    pub serves: bool,
    /// What it said; `None` where it did not answer.
    pub sessions: Option<f64>,
}

/// Which of the pods that serve go when `count` go: those with the fewest sessions. Pods that do not serve go before
/// all others, and one that does not say what it has goes last. Among equals the name decides, so that the same pods
/// are named each time.
#[must_use]
pub fn leaving<'a>(pods: &[Candidate<'a>], count: usize) -> BTreeSet<&'a str> {
    let idle = pods.iter().filter(|pod| !pod.serves).count();
    let mut serving: Vec<_> = pods.iter().filter(|pod| pod.serves).collect();
    let sessions = |pod: &Candidate<'_>| pod.sessions.unwrap_or(f64::INFINITY);
    serving.sort_by(|a, b| {
        let by_sessions = sessions(a).total_cmp(&sessions(b));
        by_sessions.then_with(|| a.name.cmp(b.name))
    });
    let count = count.saturating_sub(idle);
    serving.iter().take(count).map(|pod| pod.name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pods<'a>(all: &[(&'a str, bool, Option<f64>)]) -> Vec<Candidate<'a>> {
        all.iter()
            .map(|&(name, serves, sessions)| Candidate {
                name,
                serves,
                sessions,
            })
            .collect()
    }

    fn names(leaving: BTreeSet<&str>) -> Vec<&str> {
        leaving.into_iter().collect()
    }

    #[test]
    fn those_with_the_fewest_sessions_go_and_equals_by_name() {
        let all = pods(&[
            ("a", true, Some(5.0)),
            ("b", true, Some(0.0)),
            ("c", true, Some(2.0)),
            ("d", true, Some(2.0)),
        ]);
        assert_eq!(names(leaving(&all, 1)), ["b"]);
        assert_eq!(names(leaving(&all, 2)), ["b", "c"]);
        assert_eq!(names(leaving(&all, 9)), ["a", "b", "c", "d"]);
    }

    #[test]
    fn a_pod_that_does_not_answer_is_not_taken_for_an_empty_one() {
        let all = pods(&[("a", true, None), ("b", true, Some(40.0))]);
        assert_eq!(names(leaving(&all, 1)), ["b"]);
    }

    #[test]
    fn pods_that_do_not_serve_go_first_and_are_not_named() {
        let all = pods(&[
            ("a", false, None),
            ("b", true, Some(1.0)),
            ("c", true, Some(0.0)),
        ]);
        assert!(leaving(&all, 1).is_empty());
        assert_eq!(names(leaving(&all, 2)), ["c"]);
    }
}
