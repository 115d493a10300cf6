use super::*;

const STOP_AFTER: Duration = Duration::from_secs(180);

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn serving(template: &str) -> TailPod {
    TailPod {
        template: template.to_owned(),
        is_ready: true,
        scheduled_at: Some(at(0)),
        ..TailPod::default()
    }
}

fn failing(template: &str, since: i64) -> TailPod {
    TailPod {
        template: template.to_owned(),
        scheduled_at: Some(at(since)),
        failure: Some("pod b: no such image".to_owned()),
        ..TailPod::default()
    }
}

fn stopped() -> Stopped {
    Stopped {
        template: "new".to_owned(),
        held: "old".to_owned(),
        because: "pod b: no such image".to_owned(),
    }
}

fn on(seconds: Option<u64>) -> Course {
    Course::On {
        look_again_after: seconds.map(Duration::from_secs),
    }
}

#[test]
fn a_rollout_goes_on_until_a_pod_has_failed_for_too_long() {
    let course_at = |pods: &[TailPod], second| course("new", None, pods, STOP_AFTER, at(second));
    let pods = [serving("old"), failing("new", 1000), failing("new", 1060)];
    assert_eq!(course_at(&pods, 1100), on(Some(80)));
    assert_eq!(course_at(&pods, 1180), Course::Back(stopped()));
    // Nobody's clock is exact.
    assert_eq!(course_at(&pods, 900), on(Some(180)));
}

#[test]
fn what_is_on_its_way_may_take_its_time() {
    let waiting = TailPod {
        scheduled_at: None,
        ..failing("new", 0)
    };
    let loading = TailPod {
        failure: None,
        ..failing("new", 0)
    };
    let pods = [serving("old"), waiting, loading];
    assert_eq!(
        course("new", None, &pods, STOP_AFTER, at(100_000)),
        on(None)
    );
}

#[test]
fn without_a_pod_that_serves_there_is_nothing_to_go_back_to() {
    let leaving = TailPod {
        is_leaving: true,
        ..serving("old")
    };
    let unknown = serving("");
    for other in [failing("old", 0), leaving, unknown, serving("new")] {
        let pods = [other.clone(), failing("new", 0)];
        let course = course("new", None, &pods, STOP_AFTER, at(1000));
        assert_eq!(course, on(None), "{other:?}");
    }
}

#[test]
fn the_template_of_most_serving_pods_is_gone_back_to() {
    let pods = [
        serving("older"),
        serving("old"),
        serving("old"),
        failing("new", 0),
    ];
    assert_eq!(
        course("new", None, &pods, STOP_AFTER, at(1000)),
        Course::Back(stopped())
    );
}

#[test]
fn a_stopped_template_is_not_tried_again_and_another_one_is() {
    let before = || Some(stopped());
    assert_eq!(
        course("new", before(), &[], STOP_AFTER, at(0)),
        Course::Back(stopped())
    );
    assert_eq!(
        course("newer", before(), &[serving("old")], STOP_AFTER, at(0)),
        on(None)
    );
}

#[test]
fn what_was_stopped_is_read_back_from_annotations() {
    let annotations = stopped()
        .annotations()
        .map(|(name, value)| (name.to_owned(), value.to_owned()));
    let mut metadata = ObjectMeta {
        annotations: Some(annotations.into()),
        ..ObjectMeta::default()
    };
    assert_eq!(Stopped::read(&metadata), Some(stopped()));
    let annotations = metadata.annotations.as_mut().unwrap();
    annotations.remove(names::STOPPED_ANNOTATION);
    assert_eq!(Stopped::read(&metadata), None);
}

#[test]
fn a_pod_is_read_as_it_stands() {
    let pod: Pod = serde_json::from_value(serde_json::json!({
        "metadata": {"name": "a", "labels": {"headway.dev/template": "new"}},
        "status": {"conditions": [
            {"type": "PodScheduled", "status": "True", "lastTransitionTime": "1970-01-01T00:01:00Z"},
            {"type": "Ready", "status": "False"},
        ]},
    }))
    .unwrap();
    let read = TailPod::new(&pod, Some("pod b: no such image".to_owned()));
    assert_eq!(read, failing("new", 60));
}
