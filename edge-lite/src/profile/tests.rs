//! What a profile says between its measurements, and how it is stored.

use super::*;

pub(crate) fn held() -> Held {
    Held {
        quantization: Quantization::None,
        dtype: WeightDtype::Native,
    }
}

pub(crate) fn times() -> LayerTimes {
    let decode = [(0, 1.0), (100, 1.5)];
    let prefill = [(8, 2.0), (32, 5.0)];
    LayerTimes {
        held: held(),
        layers_measured: 2,
        layer_bytes: 1000,
        embedding_bytes: 4000,
        embedding_row_ms: 0.0,
        decode: decode
            .map(|(positions, ms)| DecodeTime { positions, ms })
            .into(),
        prefill: prefill.map(|(rows, ms)| PrefillTime { rows, ms }).into(),
        prefill_row_position_ms: 0.001,
        lm_head: None,
    }
}

fn key() -> ProfileKey {
    ProfileKey {
        model_digest: "sha256:00".to_owned(),
        place: "cuda:0".to_owned(),
        threads: 3,
    }
}

fn profile() -> Profile {
    let mut profile = Profile::new(key(), "tiny");
    profile.put_times(times());
    let link = Link {
        rtt_ms: Some(12.0),
        up_bits_per_second: Some(5e6),
        ..Link::default()
    };
    profile.put_link("ws://h:1", link);
    profile
}

#[test]
fn between_and_beyond_what_was_measured_times_are_linear() {
    let times = times();
    let near = |got: f64, expected: f64| assert!((got - expected).abs() < 1e-9, "{got} {expected}");
    near(times.layer_ms(0, 50), 0.0);
    near(times.layer_ms(1, 0), 1.0);
    near(times.layer_ms(1, 50), 1.25);
    near(times.layer_ms(1, 300), 2.5);
    near(times.layer_ms(8, 0), 2.0);
    near(times.layer_ms(20, 0), 3.5);
    near(times.layer_ms(64, 0), 9.0);
    near(times.layer_ms(8, 100), 2.0 + 0.8);
    // Not measured here: as much slower as its matrix is larger.
    near(times.lm_head_ms(4000), 4.0);
}

#[test]
fn more_never_takes_less_even_where_a_measurement_says_so() {
    let mut noisy = times();
    noisy.prefill[1].ms = 1.0;
    noisy.decode[1].ms = 0.5;
    for rows in 2..64 {
        assert!(
            noisy.layer_ms(rows, 0) >= noisy.layer_ms(rows - 1, 0),
            "{rows}"
        );
    }
    assert!(noisy.layer_ms(1, 400) >= noisy.layer_ms(1, 0));
}

#[test]
fn a_stored_profile_is_read_back_for_its_model_place_and_threads_only() {
    let folder = tempfile::tempdir().unwrap();
    let store = ProfileStore::new(folder.path());
    assert_eq!(store.read(&key()).unwrap(), None);
    let profile = profile();
    let path = store.write(&profile).unwrap();
    assert!(
        path.ends_with("profiles/sha256-00-cuda-0-3.json"),
        "{path:?}"
    );
    assert_eq!(store.read(&key()).unwrap(), Some(profile));
    let other = ProfileKey {
        threads: 4,
        ..key()
    };
    assert_eq!(store.read(&other).unwrap(), None);
    std::fs::copy(&path, store.path(&other)).unwrap();
    assert_eq!(store.read(&other).unwrap(), None);
    let files = std::fs::read_dir(folder.path().join("profiles")).unwrap();
    assert_eq!(files.count(), 2, "nothing half written is left");
}

#[test]
fn a_later_version_or_a_damaged_file_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let store = ProfileStore::new(folder.path());
    let path = store.write(&profile()).unwrap();
    for (content, said) in [
        (
            r#"{"version":9}"#,
            "version 9; this program knows version 2",
        ),
        ("{", "is no profile"),
        (r#"{"version":2}"#, "is no profile"),
    ] {
        std::fs::write(&path, content).unwrap();
        let error = store.read(&key()).unwrap_err().to_string();
        assert!(
            error.contains(said) && error.contains("delete the file"),
            "{error}"
        );
    }
    std::fs::write(&path, vec![b' '; 2 << 20]).unwrap();
    let error = store.read(&key()).unwrap_err();
    assert!(matches!(error, StoreError::TooLarge { .. }), "{error}");
}

#[test]
fn what_an_earlier_version_measured_is_measured_anew() {
    let folder = tempfile::tempdir().unwrap();
    let store = ProfileStore::new(folder.path());
    let path = store.write(&profile()).unwrap();
    std::fs::write(&path, r#"{"version":1}"#).unwrap();
    assert_eq!(store.read(&key()).unwrap(), None);
    let merged = store.merge(profile()).unwrap();
    assert_eq!(store.read(&key()).unwrap(), Some(merged));
}

#[test]
fn what_is_measured_anew_replaces_what_was_and_leaves_the_rest() {
    let folder = tempfile::tempdir().unwrap();
    let store = ProfileStore::new(folder.path());
    store.write(&profile()).unwrap();
    let mut measured = Profile::new(key(), "tiny");
    let faster = LayerTimes {
        embedding_row_ms: 0.5,
        ..times()
    };
    measured.put_times(faster.clone());
    let merged = store.merge(measured).unwrap();
    assert_eq!(merged.layers, [faster]);
    assert_eq!(merged.tails.len(), 1);
    assert_eq!(store.read(&key()).unwrap(), Some(merged));
}

#[test]
fn a_link_is_fresh_for_a_time_and_not_from_the_future() {
    let mut profile = profile();
    assert!(profile.fresh_link("ws://h:1", 60).is_some());
    assert_eq!(profile.fresh_link("ws://h:2", 60), None);
    profile.tails[0].seen_at_seconds -= 100;
    assert_eq!(profile.fresh_link("ws://h:1", 60), None);
    profile.tails[0].seen_at_seconds += 1000;
    assert_eq!(
        profile.fresh_link("ws://h:1", 60),
        None,
        "a clock that was set back"
    );
}

#[test]
fn bandwidths_stand_where_an_answer_told_nothing_of_them() {
    let mut profile = profile();
    let link = Link {
        rtt_ms: Some(20.0),
        ..Link::default()
    };
    profile.put_link("ws://h:1", link);
    profile.put_link("ws://h:1", Link::default());
    let link = profile.fresh_link("ws://h:1", 60).unwrap();
    assert_eq!(link.rtt_ms, Some(20.0));
    assert_eq!(link.up_bits_per_second, Some(5e6));
    for port in 0..100 {
        profile.put_link(&format!("ws://h:{port}"), link);
    }
    assert_eq!(profile.tails.len(), MAX_TAILS);
}

#[test]
fn the_table_names_what_was_measured() {
    let text = profile().to_string();
    for part in [
        "tiny",
        "NVIDIA GPU (cuda:0), 3 threads",
        "one row behind",
        "32 rows",
        "ws://h:1",
        "5.0 Mbit/s",
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
}
