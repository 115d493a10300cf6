use std::sync::Mutex;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use serde_json::Value;
use tokio::sync::Semaphore;

use super::*;
use crate::config::ClientConfig;
use crate::credentials::{Credentials, Secret, Token};
use crate::tail_url::TailUrl;
use crate::tls;

/// Nothing here takes longer.
const PATIENCE: Duration = Duration::from_secs(60);

/// A tail that takes reports.
#[derive(Clone)]
struct Taker {
    /// What the next requests are answered; afterwards all goes well.
    statuses: Arc<Mutex<VecDeque<StatusCode>>>,
    /// Reports in the order in which they came, refused ones too.
    reports: Arc<watch::Sender<Vec<Value>>>,
    tokens: Arc<Mutex<Vec<Option<String>>>>,
    /// One for each request that may be answered.
    answers: Arc<Semaphore>,
}

impl Taker {
    fn new(statuses: &[u16]) -> Self {
        let statuses = statuses
            .iter()
            .map(|code| StatusCode::from_u16(*code).unwrap());
        Self {
            statuses: Arc::new(Mutex::new(statuses.collect())),
            reports: Arc::new(watch::Sender::new(Vec::new())),
            tokens: Arc::default(),
            answers: Arc::new(Semaphore::new(Semaphore::MAX_PERMITS)),
        }
    }

    /// One that answers when it is told to.
    fn held() -> Self {
        Self {
            answers: Arc::new(Semaphore::new(0)),
            ..Self::new(&[])
        }
    }

    async fn serve(&self) -> String {
        let router = Router::new()
            .route("/v1/on-device-answers", post(take))
            .with_state(self.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, router).await });
        format!("ws://{address}")
    }

    /// Waits for `count` requests.
    async fn reports(&self, count: usize) -> Vec<Value> {
        let mut changes = self.reports.subscribe();
        let reached = changes.wait_for(|reports| reports.len() >= count);
        let reports = tokio::time::timeout(PATIENCE, reached).await;
        reports.unwrap().unwrap().clone()
    }
}

async fn take(
    State(taker): State<Taker>,
    headers: HeaderMap,
    axum::Json(report): axum::Json<Value>,
) -> (StatusCode, axum::Json<Value>) {
    let token = headers.get("authorization");
    let token = token.map(|token| token.to_str().unwrap().to_owned());
    taker.tokens.lock().unwrap().push(token);
    taker.reports.send_modify(|reports| reports.push(report));
    taker.answers.acquire().await.unwrap().forget();
    let status = taker.statuses.lock().unwrap().pop_front();
    let body = serde_json::json!({"counted": true});
    (status.unwrap_or(StatusCode::OK), axum::Json(body))
}

fn reporter_with(url: &str, token: Option<Token>) -> Reporter {
    let url = TailUrl::parse(url).unwrap();
    let tls = tls::client_config(false, &Credentials::default()).unwrap();
    let timeout = ClientConfig::default().connect_timeout;
    let api = TailApi::new(url, &tls, token, timeout).unwrap();
    let backoff = Backoff {
        min: Duration::from_millis(1),
        max: Duration::from_millis(4),
    };
    Reporter::start(api, backoff)
}

fn reporter(url: &str) -> Reporter {
    reporter_with(url, None)
}

/// The numbers of a report's answers.
fn numbers(report: &Value) -> Vec<(u64, u64)> {
    let answers = report["answers"].as_array().unwrap();
    let number = |answer: &Value, key: &str| answer[key].as_u64().unwrap();
    answers
        .iter()
        .map(|answer| {
            (
                number(answer, "prompt_tokens"),
                number(answer, "output_tokens"),
            )
        })
        .collect()
}

#[tokio::test]
async fn an_answer_is_reported_with_an_id_and_the_credentials() {
    let taker = Taker::new(&[]);
    let token = Token::Value(Secret::new("hello".to_owned()));
    let reporter = reporter_with(&taker.serve().await, Some(token));
    reporter.answered(12, 40);
    assert!(reporter.finish(PATIENCE).await);
    let reports = taker.reports(1).await;
    assert_eq!(numbers(&reports[0]), [(12, 40)]);
    let id = reports[0]["report_id"].as_str().unwrap();
    assert!(
        id.len() == 32 && id.bytes().all(|byte| b"0123456789abcdef".contains(&byte)),
        "{id}"
    );
    let tokens = taker.tokens.lock().unwrap().clone();
    assert_eq!(tokens, [Some("Bearer hello".to_owned())]);
}

#[tokio::test]
async fn an_answer_without_a_token_is_not_reported() {
    let taker = Taker::new(&[]);
    let reporter = reporter(&taker.serve().await);
    reporter.answered(12, 0);
    reporter.answered(3, 1);
    assert!(reporter.finish(PATIENCE).await);
    assert_eq!(numbers(&taker.reports(1).await[0]), [(3, 1)]);
}

#[tokio::test]
async fn what_has_queued_up_goes_in_one_report_of_256_at_most() {
    let taker = Taker::held();
    let reporter = reporter(&taker.serve().await);
    reporter.answered(1, 1);
    taker.reports(1).await;
    // The first is under way.
    for prompt_tokens in 0..MAX_REPORT_ANSWERS + 10 {
        reporter.answered(prompt_tokens, 2);
    }
    taker.answers.add_permits(3);
    assert!(reporter.finish(PATIENCE).await);
    let reports = taker.reports(3).await;
    let counts: Vec<_> = reports.iter().map(|report| numbers(report).len()).collect();
    assert_eq!(counts, [1, MAX_REPORT_ANSWERS, 10]);
    assert_eq!(numbers(&reports[1])[0], (0, 2));
    assert_ne!(reports[0]["report_id"], reports[1]["report_id"]);
}

#[tokio::test]
async fn every_try_of_a_report_has_the_same_id() {
    let taker = Taker::new(&[503, 401, 408, 429, 500]);
    let reporter = reporter(&taker.serve().await);
    reporter.answered(5, 6);
    assert!(reporter.finish(PATIENCE).await);
    let reports = taker.reports(6).await;
    assert_eq!(reports.len(), 6);
    for report in &reports {
        assert_eq!(report, &reports[0]);
    }
    reporter.answered(7, 8);
    assert!(reporter.finish(PATIENCE).await);
    let next = &taker.reports(7).await[6];
    assert_ne!(next["report_id"], reports[0]["report_id"]);
}

#[tokio::test]
async fn a_refused_report_is_not_sent_again_and_the_next_one_is() {
    for status in [400, 403, 404, 413] {
        let taker = Taker::new(&[status]);
        let reporter = reporter(&taker.serve().await);
        reporter.answered(5, 6);
        assert!(reporter.finish(PATIENCE).await);
        reporter.answered(7, 8);
        assert!(reporter.finish(PATIENCE).await);
        let reports: Vec<_> = taker.reports(2).await.iter().map(numbers).collect();
        assert_eq!(reports, [[(5, 6)], [(7, 8)]], "{status}");
    }
}

#[tokio::test]
async fn a_tail_that_is_not_there_is_not_waited_for_longer_than_said() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let reporter = reporter(&format!("ws://{address}"));
    reporter.answered(5, 6);
    assert!(!reporter.finish(Duration::from_millis(20)).await);
}

#[tokio::test]
async fn nothing_to_report_is_finished_at_once() {
    let reporter = reporter("ws://127.0.0.1:1");
    assert!(reporter.finish(Duration::ZERO).await);
}

#[tokio::test]
async fn what_is_queued_when_the_last_clone_goes_is_still_sent() {
    let taker = Taker::held();
    let reporter = reporter(&taker.serve().await);
    let clone = reporter.clone();
    reporter.answered(5, 6);
    taker.reports(1).await;
    clone.answered(7, 8);
    drop((reporter, clone));
    taker.answers.add_permits(2);
    assert_eq!(numbers(&taker.reports(2).await[1]), [(7, 8)]);
}

#[tokio::test]
async fn with_the_last_clone_the_task_ends_even_where_the_tail_is_away() {
    let taker = Taker::new(&[503; 10_000]);
    let reporter = reporter(&taker.serve().await);
    let queue = Arc::downgrade(&reporter.handle.queue);
    reporter.answered(5, 6);
    taker.reports(2).await;
    drop(reporter);
    let ended = async {
        while queue.strong_count() > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, ended).await.unwrap();
    assert!(!taker.statuses.lock().unwrap().is_empty());
}

#[test]
fn a_full_queue_drops_the_oldest() {
    let mut queue = Queue::default();
    for prompt_tokens in 0..MAX_WAITING_ANSWERS + 3 {
        queue.push(OnDeviceAnswer {
            prompt_tokens,
            output_tokens: 1,
        });
    }
    assert_eq!(queue.waiting.len(), MAX_WAITING_ANSWERS);
    assert_eq!(queue.waiting[0].prompt_tokens, 3);
    assert!(queue.has_dropped);
}

#[test]
fn waits_grow_up_to_five_minutes() {
    let Backoff { min, max } = Backoff::default();
    assert!(min >= Duration::from_millis(100) && min < max && max <= Duration::from_secs(300));
}
