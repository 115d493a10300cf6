//! Reports of what devices answered alone.

use reqwest::Response;
use serde_json::{Value, json};
use tail_server::Timeouts;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Duration, timeout};

use crate::auth::{key_line, keys_file, timeouts};
use crate::rig::{PATIENCE, PROMPT, Server, token_ids};

const PATH: &str = "/v1/on-device-answers";
const PROMPT_TOKENS: &str = "headway_tail_on_device_tokens_total{part=\"prompt\"}";
const OUTPUT_TOKENS: &str = "headway_tail_on_device_tokens_total{part=\"output\"}";
const SAVED: &str = "headway_tail_saved_seconds_total{term=\"on_device_answers\"}";
const ID: &str = "0f1e2d3c4b5a69788796a5b4c3d2e1f0";

/// Of the tiny model.
const MAX_POSITIONS: u64 = 256;

fn report(id: &str, answers: &[(u64, u64)]) -> Value {
    let answers: Vec<_> = answers
        .iter()
        .map(|(prompt, output)| json!({"prompt_tokens": prompt, "output_tokens": output}))
        .collect();
    json!({"report_id": id, "answers": answers})
}

/// A tail that lets devices answer alone.
async fn start(options: &[&str]) -> Server {
    Server::start(&[&["--on-device-answers"], options].concat()).await
}

async fn post(server: &Server, body: impl Into<String>, token: Option<&str>) -> Response {
    let mut request = server.http.post(server.url(PATH)).body(body.into());
    if let Some(token) = token {
        request = request.bearer_auth(token);
    }
    request.send().await.unwrap()
}

/// What a report that is taken is answered with.
async fn is_counted(response: Response) -> bool {
    assert_eq!(response.status(), 200);
    let body: Value = response.json().await.unwrap();
    body["counted"].as_bool().unwrap()
}

/// Status, code and sentence.
async fn refusal(response: Response) -> (u16, String, String) {
    let status = response.status().as_u16();
    let body: Value = response.json().await.unwrap();
    let text = |key: &str| body["error"][key].as_str().unwrap().to_owned();
    (status, text("code"), text("message"))
}

async fn tokens(server: &Server) -> (f64, f64) {
    (
        server.metric(PROMPT_TOKENS).await,
        server.metric(OUTPUT_TOKENS).await,
    )
}

#[tokio::test]
async fn a_report_is_counted_once() {
    let server = start(&[]).await;
    let body = report(ID, &[(12, 40), (3, 1)]).to_string();
    assert!(is_counted(post(&server, body.clone(), None).await).await);
    assert_eq!(tokens(&server).await, (15.0, 41.0));
    assert!(!is_counted(post(&server, body.clone(), None).await).await);
    assert_eq!(tokens(&server).await, (15.0, 41.0));
    let other = body.replace(ID, &ID.replace('0', "1"));
    assert!(is_counted(post(&server, other, None).await).await);
    assert_eq!(tokens(&server).await, (30.0, 82.0));
}

#[tokio::test]
async fn the_same_id_of_another_tenant_is_another_report() {
    let (_folder, keys) = keys_file(
        &(key_line("acme", "one") + &key_line("acme", "two") + &key_line("globex", "three")),
    );
    let server = start(&["--auth-keys", &keys]).await;
    let body = report(ID, &[(2, 3)]).to_string();
    for (token, expected) in [("one", true), ("two", false), ("three", true)] {
        let counted = is_counted(post(&server, body.clone(), Some(token)).await).await;
        assert_eq!(counted, expected, "{token}");
    }
    assert_eq!(tokens(&server).await, (4.0, 6.0));
}

#[tokio::test]
async fn a_report_needs_credentials() {
    let (_folder, keys) = keys_file(&key_line("acme", "one"));
    let server = start(&["--auth-keys", &keys]).await;
    let body = report(ID, &[(2, 3)]).to_string();
    for token in [None, Some("two")] {
        let (status, code, _) = refusal(post(&server, body.clone(), token).await).await;
        assert_eq!((status, code.as_str()), (401, "unauthenticated"));
    }
    assert_eq!(tokens(&server).await, (0.0, 0.0));
}

#[tokio::test]
async fn a_page_of_another_origin_reports_nothing() {
    let server = start(&["--allowed-origins", "https://app.example.com"]).await;
    let body = report(ID, &[(2, 3)]).to_string();
    let from = async |origin: &str| {
        let request = server.http.post(server.url(PATH)).header("origin", origin);
        request.body(body.clone()).send().await.unwrap()
    };
    let (status, code, message) = refusal(from("https://evil.example.com").await).await;
    assert_eq!((status, code.as_str()), (403, "unauthenticated"));
    assert!(message.contains("evil.example.com"), "{message}");
    assert!(is_counted(from("https://app.example.com").await).await);
}

#[tokio::test]
async fn a_tail_that_lets_no_device_answer_alone_takes_no_reports() {
    let server = Server::start(&[]).await;
    let body = report(ID, &[(2, 3)]).to_string();
    let (status, code, message) = refusal(post(&server, body, None).await).await;
    assert_eq!((status, code.as_str()), (403, "unsupported"));
    assert!(message.contains("--on-device-answers"), "{message}");
    assert_eq!(tokens(&server).await, (0.0, 0.0));
}

#[tokio::test]
async fn a_tail_whose_largest_split_is_all_layers_takes_reports() {
    let server = Server::start(&["--split-max", "3"]).await;
    let body = report(ID, &[(2, 3)]).to_string();
    assert!(is_counted(post(&server, body, None).await).await);
}

#[tokio::test]
async fn a_report_beyond_its_limits_is_refused_with_the_limit_and_counts_nothing() {
    let server = start(&[]).await;
    let long = "1".repeat(70_000);
    let cases = [
        (
            report(ID, &[(1, 1); 257]).to_string(),
            400,
            "malformed",
            "1 to 256",
        ),
        (report(ID, &[]).to_string(), 400, "malformed", "1 to 256"),
        (
            report(ID, &[(1, 1), (0, 5)]).to_string(),
            400,
            "malformed",
            "answer 1",
        ),
        (
            report(ID, &[(MAX_POSITIONS, 1)]).to_string(),
            413,
            "over_limit",
            "256 positions",
        ),
        (
            report("abc", &[(1, 1)]).to_string(),
            400,
            "malformed",
            "32 digits",
        ),
        (r#"{"report_id": 5"#.to_owned(), 400, "malformed", "JSON"),
        (String::new(), 400, "malformed", "JSON"),
        (long, 413, "over_limit", "65536 bytes"),
    ];
    for (body, status, code, part) in cases {
        let (got_status, got_code, message) = refusal(post(&server, body, None).await).await;
        assert_eq!((got_status, got_code.as_str()), (status, code), "{message}");
        assert!(message.contains(part), "{message}");
    }
    assert_eq!(tokens(&server).await, (0.0, 0.0));
    // The id of a refused report is not taken.
    let most = report(ID, &[(MAX_POSITIONS - 1, 1)]).to_string();
    assert!(is_counted(post(&server, most, None).await).await);
}

#[tokio::test]
async fn only_a_post_is_a_report() {
    let server = start(&[]).await;
    assert_eq!(server.get(PATH).await.status(), 405);
}

#[tokio::test]
async fn a_body_that_does_not_come_ends_the_request() {
    let timeouts = Timeouts {
        headers: Duration::from_millis(100),
        ..timeouts()
    };
    let server = Server::start_with(&["--on-device-answers"], timeouts).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let headers = format!("POST {PATH} HTTP/1.1\r\nHost: tail\r\nContent-Length: 100\r\n\r\n{{");
    stream.write_all(headers.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    timeout(PATIENCE, stream.read_to_end(&mut answer))
        .await
        .unwrap()
        .unwrap();
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
}

/// Runs a session of one prompt and `decodes` tokens behind its first on the tail.
async fn run_session(server: &Server, decodes: usize) {
    let mut client = server.session(0).await;
    client.send(token_ids(0, &PROMPT, true)).await;
    let mut token_id = client.result().await.token_id.unwrap();
    for position in PROMPT.len()..PROMPT.len() + decodes {
        client.send(token_ids(position, &[token_id], true)).await;
        token_id = client.result().await.token_id.unwrap();
    }
}

#[tokio::test]
async fn an_answer_saves_about_what_the_same_answer_costs_here() {
    let server = start(&[]).await;
    run_session(&server, 9).await;
    let used = server.metric("headway_tail_busy_seconds_total").await;
    let answers = [(PROMPT.len() as u64, 10)];
    assert!(is_counted(post(&server, report(ID, &answers).to_string(), None).await).await);
    let saved = server.metric(SAVED).await;
    assert!(
        saved > used / 10.0 && saved < used * 10.0,
        "used {used}, saved {saved}"
    );
}

#[tokio::test]
async fn answers_before_the_first_step_are_valued_when_there_is_one() {
    let server = start(&[]).await;
    let answers = [(PROMPT.len() as u64, 10)];
    assert!(is_counted(post(&server, report(ID, &answers).to_string(), None).await).await);
    assert_eq!(server.metric(SAVED).await, 0.0);
    assert_eq!(tokens(&server).await, (11.0, 10.0));
    run_session(&server, 9).await;
    let (used, saved) = (
        server.metric("headway_tail_busy_seconds_total").await,
        server.metric(SAVED).await,
    );
    assert!(
        saved > used / 100.0 && saved < used * 100.0,
        "used {used}, saved {saved}"
    );
}
