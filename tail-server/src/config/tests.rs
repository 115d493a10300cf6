use clap::Parser as _;

use super::*;

fn config(options: &[&str]) -> Result<Config, ConfigError> {
    let base = [
        "tail-server",
        "--model",
        "model.gguf",
        "--cache-dir",
        "cache",
    ];
    let args = Args::try_parse_from(base.iter().chain(options)).expect("clap accepts the form");
    Config::try_from(args)
}

fn message(options: &[&str]) -> String {
    config(options)
        .map(|_| "accepted".to_owned())
        .unwrap_or_else(|error| error.to_string())
}

#[test]
fn the_defaults_are_lossless_and_local() {
    let config = config(&[]).unwrap();
    assert!(config.listen.ip().is_loopback());
    assert_eq!(config.codecs.first(), Some(&Codec::F32));
    assert_eq!(config.head_quantizations.first(), Some(&Quantization::None));
    assert_eq!(config.dtype, WeightDtype::Native);
}

#[test]
fn an_open_address_is_refused_and_the_way_out_is_named() {
    let message = message(&["--listen", "0.0.0.0:8089"]);
    assert!(
        message.contains("0.0.0.0:8089") && message.contains("--insecure-listen"),
        "{message}"
    );
}

#[test]
fn an_open_address_is_accepted_where_it_is_asked_for() {
    assert!(config(&["--listen", "0.0.0.0:8089", "--insecure-listen"]).is_ok());
}

#[test]
fn cuda_is_refused_by_a_build_without_it() {
    let message = message(&["--device", "cuda:0"]);
    assert!(message.contains("no CUDA"), "{message}");
}

#[test]
fn an_unknown_device_is_refused_with_the_known_ones() {
    let message = message(&["--device", "tpu"]);
    assert!(message.contains("cpu or cuda:N"), "{message}");
}

#[test]
fn an_unknown_quantisation_is_refused_with_the_known_ones() {
    let message = message(&["--head-quantizations", "none,q3"]);
    assert!(
        message.contains("q3") && message.contains("q8_0"),
        "{message}"
    );
}

#[test]
fn an_unknown_codec_is_refused_with_the_known_ones() {
    let message = message(&["--codecs", "f32,zip"]);
    assert!(
        message.contains("zip") && message.contains("int8"),
        "{message}"
    );
}

#[test]
fn a_split_range_that_is_upside_down_is_refused() {
    let message = message(&["--split-min", "9", "--split-max", "3"]);
    assert!(message.contains("split-min"), "{message}");
}

#[test]
fn a_step_of_one_row_is_refused() {
    let message = message(&["--step-tokens", "1"]);
    assert!(message.contains("2 to 65536"), "{message}");
}

#[test]
fn repeated_names_are_taken_once() {
    let config = config(&["--codecs", "f16,f32,f16"]).unwrap();
    assert_eq!(config.codecs, [Codec::F16, Codec::F32]);
}
