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
fn a_stall_bound_of_zero_is_none() {
    let bound = |options: &[&str]| config(options).unwrap().stall;
    assert_eq!(bound(&[]), Some(Duration::from_secs(30)));
    assert_eq!(
        bound(&["--stall-seconds", "7"]),
        Some(Duration::from_secs(7))
    );
    assert_eq!(bound(&["--stall-seconds", "0"]), None);
    let refused = message(&["--stall-seconds", "86401"]);
    assert!(refused.contains("--stall-seconds"), "{refused}");
}

#[test]
fn an_open_address_is_refused_and_the_way_out_is_named() {
    let message = message(&["--listen", "0.0.0.0:8089"]);
    assert!(
        message.contains("0.0.0.0:8089") && message.contains("--allow-anonymous"),
        "{message}"
    );
}

#[test]
fn an_open_address_is_accepted_where_it_is_asked_for() {
    assert!(config(&["--listen", "0.0.0.0:8089", "--allow-anonymous"]).is_ok());
}

#[test]
fn a_contradiction_between_everybody_and_credentials_is_refused() {
    let message = message(&["--auth-keys", "keys", "--allow-anonymous"]);
    assert!(
        message.contains("--allow-anonymous contradicts"),
        "{message}"
    );
}

#[test]
fn any_credential_opens_an_address() {
    let open = ["--listen", "0.0.0.0:8089"];
    let tls = ["--tls-cert", "crt", "--tls-key", "key"];
    let keys = ["--auth-keys", "keys"];
    let oidc = [
        "--oidc-issuer",
        "https://id.example",
        "--oidc-audience",
        "tail",
    ];
    let mutual = [&tls[..], &["--tls-client-ca", "ca"]].concat();
    for credential in [&keys[..], &oidc, &mutual] {
        let config = config(&[&open[..], credential].concat()).unwrap();
        assert!(!config.access.is_anonymous());
    }
    // TLS alone says who the tail is, and not who asks.
    let message = message(&[&open[..], &tls].concat());
    assert!(message.contains("--allow-anonymous"), "{message}");
}

#[test]
fn options_that_need_each_other_come_together() {
    for options in [
        &["--tls-cert", "crt"][..],
        &["--tls-key", "key"],
        &["--tls-client-ca", "ca"],
        &["--oidc-issuer", "https://id.example"],
        &["--oidc-audience", "tail"],
        &["--oidc-jwks", "jwks.json"],
        &["--rebalance-seconds", "5"],
    ] {
        let base = ["tail-server", "--model", "model.gguf"];
        assert!(
            Args::try_parse_from(base.iter().chain(options)).is_err(),
            "{options:?}"
        );
    }
}

#[test]
fn the_issuers_keys_come_from_a_file_a_url_or_its_discovery_document() {
    let jwks = |options: &[&str]| {
        let oidc = [
            "--oidc-issuer",
            "https://id.example/a/",
            "--oidc-audience",
            "tail",
        ];
        let config = config(&[&oidc[..], options].concat()).unwrap();
        config.access.oidc.unwrap().jwks
    };
    let url = |text: &str| reqwest::Url::parse(text).unwrap();
    assert_eq!(
        jwks(&["--oidc-jwks", "a/jwks"]),
        JwksSource::File("a/jwks".into())
    );
    assert_eq!(
        jwks(&["--oidc-jwks", "https://id.example/keys"]),
        JwksSource::Url(url("https://id.example/keys"))
    );
    let document = url("https://id.example/a/.well-known/openid-configuration");
    assert_eq!(jwks(&[]), JwksSource::Discovery(document));
}

#[test]
fn keys_are_not_fetched_where_they_can_be_changed_on_the_way() {
    let message = message(&[
        "--oidc-issuer",
        "http://id.example",
        "--oidc-audience",
        "tail",
    ]);
    assert!(message.contains("https://"), "{message}");
    let loopback = config(&[
        "--oidc-issuer",
        "http://127.0.0.1:1",
        "--oidc-audience",
        "tail",
    ]);
    assert!(loopback.is_ok());
}

#[test]
fn origins_are_taken_as_browsers_write_them() {
    let origins = "https://app.example.com,http://localhost:3000";
    let config = config(&["--allowed-origins", origins]).unwrap();
    assert_eq!(config.access.allowed_origins.len(), 2);
    for origin in ["https://a.example/", "a.example", "*", "HTTPS://A.example"] {
        let message = message(&["--allowed-origins", origin]);
        assert!(message.contains("without a path"), "{origin}: {message}");
    }
}

#[test]
fn zero_is_no_limit_for_a_tenant_or_a_device() {
    let limits = config(&[]).unwrap().access.tenant_limits;
    assert_eq!(limits, TenantLimits::default());
    let quota = Quota {
        max_sessions: Some(3),
        tokens_per_second: Some(90),
    };
    let of = |options: &[&str]| config(options).unwrap().access.tenant_limits;
    let tenant = [
        "--tenant-max-sessions",
        "3",
        "--tenant-tokens-per-second",
        "90",
    ];
    let device = [
        "--device-max-sessions",
        "3",
        "--device-tokens-per-second",
        "90",
    ];
    let expected = TenantLimits {
        tenant: quota,
        ..TenantLimits::default()
    };
    assert_eq!(of(&tenant), expected);
    let expected = TenantLimits {
        device: quota,
        ..TenantLimits::default()
    };
    assert_eq!(of(&device), expected);
}

#[test]
fn a_rate_below_that_of_the_largest_step_is_refused() {
    for option in ["--tenant-tokens-per-second", "--device-tokens-per-second"] {
        let message = message(&[option, "9"]);
        assert!(
            message.contains(option) && message.contains("20 and more"),
            "{message}"
        );
    }
    let message = message(&["--device-max-sessions", "65537"]);
    assert!(message.contains("--device-max-sessions"), "{message}");
}

#[test]
fn sessions_are_evicted_kept_and_verified_as_said() {
    let defaults = SessionConfig {
        evict_idle: Duration::from_secs(30),
        prefix_retention: Some(Duration::from_secs(300)),
        max_draft_tokens: 16,
        rebalance: None,
    };
    assert_eq!(config(&[]).unwrap().sessions, defaults);
    let said = config(&[
        "--evict-idle-seconds",
        "1",
        "--prefix-retention-seconds",
        "0",
        "--max-draft-tokens",
        "0",
    ]);
    let expected = SessionConfig {
        evict_idle: Duration::from_secs(1),
        prefix_retention: None,
        max_draft_tokens: 0,
        rebalance: None,
    };
    assert_eq!(said.unwrap().sessions, expected);
    assert!(config(&["--max-draft-tokens", "64"]).is_ok());
}

#[test]
fn a_bound_of_sessions_that_makes_no_sense_is_refused_with_what_does() {
    for (option, wrong, expected) in [
        ("--evict-idle-seconds", "0", "1 to 86400"),
        ("--evict-idle-seconds", "86401", "1 to 86400"),
        ("--prefix-retention-seconds", "86401", "0 to 86400"),
        ("--max-draft-tokens", "65", "0 to 64"),
    ] {
        let message = message(&[option, wrong]);
        assert!(
            message.contains(option) && message.contains(expected),
            "{message}"
        );
    }
}

#[test]
fn a_target_of_sessions_comes_with_the_time_they_may_take() {
    let rebalance = |options: &[&str]| {
        let file = ["--session-target-file", "a/target"];
        config(&[&file[..], options].concat())
            .unwrap()
            .sessions
            .rebalance
    };
    let after = |seconds| {
        Some(RebalanceConfig {
            target_file: "a/target".into(),
            grace: Duration::from_secs(seconds),
        })
    };
    assert_eq!(rebalance(&[]), after(60));
    assert_eq!(rebalance(&["--rebalance-seconds", "5"]), after(5));
    let refused = message(&["--session-target-file", "f", "--rebalance-seconds", "0"]);
    assert!(refused.contains("1 to 86400"), "{refused}");
}

#[test]
#[cfg(not(feature = "cuda"))]
fn cuda_is_refused_by_a_build_without_it() {
    for device in ["cuda:0", "cuda:0,cuda:1"] {
        let message = message(&["--device", device]);
        assert!(message.contains("no CUDA"), "{message}");
    }
}

#[test]
#[cfg(feature = "cuda")]
fn gpus_are_named_by_their_numbers() {
    let place = |device| config(&["--device", device]).unwrap().place;
    assert_eq!(place("cuda:3"), Place::Cuda(vec![3]));
    assert_eq!(place("cuda:0,cuda:1"), Place::Cuda(vec![0, 1]));
    assert!(message(&["--device", "cuda:0,cuda:0"]).contains("none twice"));
}

#[test]
fn the_first_gpu_is_taken_where_there_is_one_and_nothing_is_said() {
    assert_eq!(config(&[]).unwrap().place, Place::Auto);
    assert_eq!(config(&["--device", "cpu"]).unwrap().place, Place::Cpu);
}

#[test]
fn an_unknown_device_is_refused_with_the_known_ones() {
    let message = message(&["--device", "tpu"]);
    assert!(message.contains("auto, cpu or cuda:N"), "{message}");
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
fn a_default_split_outside_the_range_is_refused() {
    let below = message(&["--split-min", "4", "--split-default", "3"]);
    assert!(
        below.contains("split-min") && below.contains("--split-default"),
        "{below}"
    );
    let above = message(&["--split-default", "9", "--split-max", "8"]);
    assert!(
        above.contains("split-default") && above.contains("8"),
        "{above}"
    );
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
