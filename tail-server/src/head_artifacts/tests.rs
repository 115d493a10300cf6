use super::*;

fn offer(max_layers: usize) -> Offer {
    let quantizations = vec![Quantization::None, Quantization::Q8_0];
    Offer {
        quantizations,
        max_layers,
        default_layers: 10.min(max_layers),
        num_layers: 30,
    }
}

fn names(keys: &[PartKey]) -> Vec<String> {
    keys.iter().map(|key| key.part.to_string()).collect()
}

#[test]
fn a_device_with_two_layers_needs_the_embedding_and_those_layers() {
    let parts = offer(20).parts("none", Some("0-2")).unwrap();
    assert_eq!(names(&parts), ["embedding", "layer-0", "layer-1"]);
}

#[test]
fn a_range_that_does_not_start_at_0_has_no_embedding() {
    let parts = offer(20).parts("q8_0", Some("18-20")).unwrap();
    assert_eq!(names(&parts), ["layer-18", "layer-19"]);
}

#[test]
fn without_a_range_the_default_split_is_meant() {
    assert_eq!(offer(20).parts("none", None).unwrap().len(), 11);
}

#[test]
fn tail_layers_are_not_served_and_the_answer_says_what_is() {
    let offer = offer(20);
    for part in ["layer-20", "layer-29", "lm_head"] {
        let error = offer.part("none", part).unwrap_err();
        assert!(
            !error.is_internal() && error.to_string().contains("layer-0 to layer-19"),
            "{error}"
        );
    }
    assert!(matches!(
        offer.parts("none", Some("0-21")),
        Err(ArtifactError::NotServed { max_layers: 20, .. })
    ));
    assert!(matches!(
        offer.parts("none", Some("0-30")),
        Err(ArtifactError::NotServed { .. })
    ));
}

#[test]
fn a_device_that_may_answer_alone_gets_everything() {
    let offer = offer(30);
    assert!(offer.part("none", "lm_head").is_ok());
    assert_eq!(offer.parts("none", Some("0-30")).unwrap().len(), 32);
    let error = offer.part("none", "layer-30").unwrap_err();
    assert!(error.to_string().contains("lm_head"), "{error}");
}

#[test]
fn a_tail_that_takes_token_ids_only_serves_no_part() {
    assert!(offer(0).part("none", "embedding").is_err());
    assert!(offer(0).part("none", "layer-0").is_err());
}

#[test]
fn names_that_are_no_parts_are_not_served() {
    for part in [
        "",
        "layer-",
        "layer--1",
        "../layer-0",
        "layer-0.gguf",
        "layer-99999999999999999999",
    ] {
        assert!(
            matches!(
                offer(20).part("none", part),
                Err(ArtifactError::NotServed { .. })
            ),
            "{part}"
        );
    }
}

#[test]
fn a_quantisation_that_is_not_offered_is_refused_with_those_that_are() {
    let error = offer(20).part("q4_0", "layer-0").unwrap_err();
    assert!(error.to_string().contains("none, q8_0"), "{error}");
}

#[test]
fn ranges_that_cannot_be_read_are_refused() {
    for layers in [
        "",
        "5",
        "a-b",
        "5-3",
        "0-",
        "-1-3",
        "0-99999999999999999999",
    ] {
        let refused = offer(20).parts("none", Some(layers));
        assert!(
            matches!(refused, Err(ArtifactError::Range { .. })),
            "{layers}"
        );
    }
}
