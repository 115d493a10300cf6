use std::path::PathBuf;

use axum::body::Body;

use super::*;
use crate::auth::CredentialSource;
use crate::metrics::Metrics;

const ID: &str = "0f1e2d3c4b5a69788796a5b4c3d2e1f0";

/// Of the model.
const MAX_POSITIONS: usize = 100;

fn json(report_id: &str, answers: &[(u64, u64)]) -> String {
    let answers: Vec<_> = answers
        .iter()
        .map(|(prompt, output)| serde_json::json!({"prompt_tokens": prompt, "output_tokens": output}))
        .collect();
    serde_json::json!({"report_id": report_id, "answers": answers}).to_string()
}

fn parse(body: &str) -> Result<Report, ReportError> {
    Report::parse(body.as_bytes(), MAX_POSITIONS)
}

fn tenant(name: &str) -> Tenant {
    Tenant::named(CredentialSource::Key, name).unwrap()
}

fn on_device_answers(body_timeout: Duration) -> OnDeviceAnswers {
    written_down_in(None, body_timeout)
}

/// `file`: of the last words.
fn written_down_in(file: Option<PathBuf>, body_timeout: Duration) -> OnDeviceAnswers {
    let metrics = Arc::new(Metrics::new().unwrap());
    OnDeviceAnswers {
        is_allowed: true,
        max_positions: MAX_POSITIONS,
        body_timeout,
        savings: Arc::new(Savings::new(2, Arc::clone(&metrics))),
        last_words: Arc::new(LastWords::new(file, metrics)),
        seen: Mutex::default(),
    }
}

#[test]
fn a_report_is_an_id_and_answers() {
    let report = parse(&json(ID, &[(12, 40), (1, 1), (60, 40)])).unwrap();
    assert_eq!(
        report.id,
        ReportId(0x0f1e_2d3c_4b5a_6978_8796_a5b4_c3d2_e1f0)
    );
    let answers =
        [(12, 40), (1, 1), (60, 40)].map(|(prompt_tokens, output_tokens)| OnDeviceAnswer {
            prompt_tokens,
            output_tokens,
        });
    assert_eq!(report.answers, answers);
}

#[test]
fn an_id_has_32_lower_case_digits() {
    for id in [
        "",
        &ID[1..],
        &format!("{ID}0"),
        &ID.to_uppercase(),
        "+f1e2d3c4b5a69788796a5b4c3d2e1f0",
        "gf1e2d3c4b5a69788796a5b4c3d2e1f0",
        "éf1e2d3c4b5a69788796a5b4c3d2e1f",
    ] {
        assert_eq!(
            parse(&json(id, &[(1, 1)])),
            Err(ReportError::ReportId),
            "{id}"
        );
    }
}

#[test]
fn a_report_has_1_to_256_answers() {
    for got in [0, MAX_REPORT_ANSWERS + 1] {
        let max = MAX_REPORT_ANSWERS;
        let error = parse(&json(ID, &vec![(1, 1); got])).unwrap_err();
        assert_eq!(error, ReportError::Answers { got, max });
    }
    let most = json(ID, &vec![(50, 50); MAX_REPORT_ANSWERS]);
    assert!(most.len() <= MAX_REPORT_BYTES);
    assert!(parse(&most).is_ok());
}

#[test]
fn an_answer_has_a_prompt_and_an_output_that_fit_the_model() {
    for (prompt, output) in [(0, 1), (1, 0), (0, 0)] {
        let error = parse(&json(ID, &[(1, 1), (prompt, output)])).unwrap_err();
        assert!(
            matches!(error, ReportError::NoTokens { index: 1, .. }),
            "{error}"
        );
    }
    for (prompt, output) in [(50, 51), (1, 100), (u64::MAX, u64::MAX)] {
        let error = parse(&json(ID, &[(1, 1), (prompt, output)])).unwrap_err();
        assert!(
            matches!(error, ReportError::TooManyTokens { index: 1, .. }),
            "{error}"
        );
        assert!(error.to_string().contains("100 positions"), "{error}");
    }
}

#[test]
fn what_is_no_report_is_said_in_a_short_sentence() {
    let long = format!(
        r#"{{"report_id": "{ID}", "answers": "{}"}}"#,
        "a".repeat(5000)
    );
    for body in [
        "",
        "null",
        "[1, 2]",
        r#"{"report_id": 1, "answers": []}"#,
        r#"{"answers": []}"#,
        r#"{"report_id": "0f1e2d3c4b5a69788796a5b4c3d2e1f0", "answers": [{"prompt_tokens": -1, "output_tokens": 1}]}"#,
        r#"{"report_id": "0f1e2d3c4b5a69788796a5b4c3d2e1f0", "answers": [{"prompt_tokens": 1.5, "output_tokens": 1}]}"#,
        r#"{"report_id": "0f1e2d3c4b5a69788796a5b4c3d2e1f0", "answers": [{"prompt_tokens": 1}]}"#,
        &long,
    ] {
        let error = parse(body).unwrap_err();
        assert!(matches!(error, ReportError::Json { .. }), "{body}: {error}");
        assert!(error.to_string().len() < MAX_REASON_CHARS + 100, "{error}");
    }
}

#[test]
fn a_tenants_ids_are_its_own() {
    let mut seen = SeenReports::default();
    let (acme, globex) = (tenant("acme"), tenant("globex"));
    assert!(seen.insert(&acme, ReportId(1)));
    assert!(!seen.insert(&acme, ReportId(1)));
    assert!(seen.insert(&globex, ReportId(1)));
    for id in 2..3 * MAX_IDS_OF_TENANT as u128 {
        assert!(seen.insert(&globex, ReportId(id)));
    }
    assert!(
        !seen.insert(&acme, ReportId(1)),
        "another tenant has pushed it out"
    );
}

#[test]
fn the_oldest_id_of_a_tenant_is_forgotten_first() {
    let mut seen = SeenReports::default();
    let acme = tenant("acme");
    for id in 0..=MAX_IDS_OF_TENANT as u128 {
        assert!(seen.insert(&acme, ReportId(id)));
    }
    assert_eq!(seen.by_tenant[&acme].ids.len(), MAX_IDS_OF_TENANT);
    assert!(!seen.insert(&acme, ReportId(1)));
    assert!(seen.insert(&acme, ReportId(0)));
}

#[test]
fn beyond_the_most_tenants_the_idlest_is_forgotten() {
    let mut seen = SeenReports::default();
    let tenants: Vec<_> = (0..MAX_TENANTS)
        .map(|index| tenant(&format!("t{index}")))
        .collect();
    for tenant in &tenants {
        assert!(seen.insert(tenant, ReportId(7)));
    }
    // The first one is heard of again, so the second is now the idlest.
    assert!(!seen.insert(&tenants[0], ReportId(7)));
    assert!(seen.insert(&tenant("new"), ReportId(7)));
    assert_eq!(seen.by_tenant.len(), MAX_TENANTS);
    assert!(!seen.insert(&tenants[0], ReportId(7)));
    assert!(!seen.insert(&tenants[2], ReportId(7)));
    assert!(seen.insert(&tenants[1], ReportId(7)));
}

#[tokio::test]
async fn a_body_larger_than_the_limit_is_refused_and_leaves_no_trace() {
    let answers = on_device_answers(Duration::from_secs(60));
    let acme = tenant("acme");
    let report = json(ID, &[(1, 1)]);
    let padded = report.clone() + &" ".repeat(MAX_REPORT_BYTES);
    let refused = answers
        .receive(&acme, Request::new(Body::from(padded)))
        .await;
    let max_bytes = MAX_REPORT_BYTES;
    assert_eq!(refused, Err(ReportError::TooLarge { max_bytes }));
    let received = answers
        .receive(&acme, Request::new(Body::from(report)))
        .await;
    assert_eq!(received, Ok(Received { counted: true }));
}

#[tokio::test(start_paused = true)]
async fn a_body_that_does_not_come_is_not_waited_for() {
    let timeout = Duration::from_secs(15);
    let answers = on_device_answers(timeout);
    let never = futures_util::stream::pending::<Result<Bytes, std::io::Error>>();
    let request = Request::new(Body::from_stream(never));
    let refused = answers.receive(&tenant("acme"), request).await;
    assert_eq!(refused, Err(ReportError::Late { timeout }));
}

#[tokio::test]
async fn a_body_that_breaks_off_is_refused() {
    let answers = on_device_answers(Duration::from_secs(60));
    let broken = Err::<Bytes, _>(std::io::Error::other("reset"));
    let body = Body::from_stream(futures_util::stream::iter([broken]));
    let refused = answers.receive(&tenant("acme"), Request::new(body)).await;
    assert_eq!(refused, Err(ReportError::BrokenOff));
}

#[tokio::test]
async fn a_report_is_answered_when_it_is_written_down() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("termination-log");
    let answers = written_down_in(Some(file.clone()), Duration::from_secs(60));
    let report = Request::new(Body::from(json(ID, &[(3, 4), (5, 6)])));
    answers.receive(&tenant("acme"), report).await.unwrap();
    let words: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    assert_eq!(words["on_device_output_tokens"], 10);
}

#[tokio::test]
async fn a_report_that_comes_twice_at_once_is_counted_once() {
    let answers = on_device_answers(Duration::from_secs(60));
    let acme = tenant("acme");
    let send = || answers.receive(&acme, Request::new(Body::from(json(ID, &[(3, 4)]))));
    let (first, second) = tokio::join!(send(), send());
    assert_eq!(first, Ok(Received { counted: true }));
    assert_eq!(second, Ok(Received { counted: false }));
}
