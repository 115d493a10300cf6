//! A tail against ten thousand inputs that no device of ours sends: each gets a typed answer, and nobody else
//! notices.

mod http;
mod inputs;
mod senseless;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::{Context as _, Result, bail, ensure};
use e2e::device::{Answer, connect, finish, request, sampled};
use e2e::tail::{Tail, http_status};
use e2e::{PATIENCE, tiny_llama};
use edge_lite::{Client, GenerateRequest, LocalConfig, LocalModel, Prompt};
use futures_util::{SinkExt as _, StreamExt as _};
use headway_wire::frame::decode_server_frame;
use headway_wire::message::RefusalCode;
use headway_wire::message::server_frame::Message as Reply;
use headway_wire::{Limits, message};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use crate::inputs::{Expected, Generator, Input, Send};

const INPUTS: usize = 10_000;
const WARM_UP: usize = 2_000;
const AT_A_TIME: usize = 8;
const MAX_GROWTH_KIB: u64 = 16 << 10;

type Socket = WebSocketStream<TcpStream>;

/// Refusals that came, by the metrics' name of the code.
type Refusals = BTreeMap<String, usize>;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_input_is_refused_by_name_and_harms_nobody() -> Result<()> {
    let tail = Tail::start(&tiny_llama(), &["--head-quantizations", "none,q8_0"]).await?;
    let id = tail.id()?;
    let client = connect(&tail.url(), 1).await?;
    let digest = client.manifest().model_digest.clone();
    let (bystander, expected) = bystander().await?;
    let (is_over, answers) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicUsize::new(0)),
    );
    let watch = tokio::spawn(watch(
        client,
        bystander,
        expected,
        Arc::clone(&is_over),
        Arc::clone(&answers),
    ));

    let mut generator = Generator::new(20_260_102, digest);
    let mut refusals = Refusals::new();
    send_all(tail.address(), &mut generator, WARM_UP, &mut refusals).await?;
    let warm_kib = tail.resident_kib()?;
    send_all(
        tail.address(),
        &mut generator,
        INPUTS - WARM_UP,
        &mut refusals,
    )
    .await?;
    let last_kib = tail.resident_kib()?;

    is_over.store(true, Ordering::Relaxed);
    watch.await??;
    let answers = answers.load(Ordering::Relaxed);
    println!("{refusals:?}, {answers} good answers, {warm_kib} KiB, at the end {last_kib} KiB");
    assert!(
        answers >= 20,
        "the generation beside the inputs ran {answers} times"
    );
    assert_eq!(tail.panics(), [""; 0]);
    assert_eq!(tail.id()?, id);
    assert!(
        last_kib <= warm_kib + MAX_GROWTH_KIB,
        "{warm_kib} KiB after the warm-up, then {last_kib} KiB"
    );
    tail.wait_for_metric("headway_tail_sessions", |sessions| sessions == 0.0)
        .await?;
    tail.wait_for_metric("headway_tail_kv_bytes", |bytes| bytes == 0.0)
        .await?;
    for code in ["malformed", "unsupported", "digest_mismatch", "over_limit"] {
        let name = format!("headway_tail_refusals_total{{code=\"{code}\"}}");
        let (counted, came) = (
            tail.metric(&name).await?,
            refusals.get(code).copied().unwrap_or(0),
        );
        // Some refusals found nobody to read them.
        assert!(
            came > 0 && counted >= came as f64,
            "{code}: {came} came, {counted} counted"
        );
    }
    assert_eq!(
        tail.metric("headway_tail_refusals_total{code=\"internal\"}")
            .await?,
        0.0
    );
    Ok(())
}

/// A generation that looks at everything a sampler can look at, and its answer without a tail.
async fn bystander() -> Result<(GenerateRequest, Answer)> {
    let prompt = Prompt::TokenIds(vec![3, 17, 64, 9, 100, 42, 5, 77, 12, 90, 31]);
    let request = request(prompt, 24, sampled(1));
    let model = LocalModel::load(&tiny_llama(), &LocalConfig::default())?;
    let expected = finish(model.generate(request.clone()).await?).await?;
    Ok((request, expected))
}

/// Generates again and again, beside whatever else the tail has to do.
async fn watch(
    client: Client,
    request: GenerateRequest,
    expected: Answer,
    is_over: Arc<AtomicBool>,
    answers: Arc<AtomicUsize>,
) -> Result<()> {
    while !is_over.load(Ordering::Relaxed) {
        let answer = finish(client.generate(request.clone()).await?).await?;
        assert_eq!(answer.tokens, expected.tokens);
        assert_eq!(
            answer.report.reconnects, 0,
            "the session of a good device was ended"
        );
        answers.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

async fn send_all(
    address: SocketAddr,
    generator: &mut Generator,
    count: usize,
    refusals: &mut Refusals,
) -> Result<()> {
    let inputs = (0..count).map(|_| generator.next());
    let sent = futures_util::stream::iter(inputs).map(|input| async move {
        let code = match &input {
            Input::Http { request, allows } => http_answer(address, request, allows).await,
            Input::Session { sends, expected } => session_answer(address, sends, expected).await,
        };
        code.with_context(|| format!("{input:?}"))
    });
    let mut sent = sent.buffer_unordered(AT_A_TIME);
    while let Some(code) = sent.next().await {
        if let Some(code) = code? {
            let name = code.as_str_name().trim_start_matches("REFUSAL_CODE_");
            *refusals.entry(name.to_ascii_lowercase()).or_default() += 1;
        }
    }
    Ok(())
}

/// Sends a request as it is, and checks the status.
async fn http_answer(
    address: SocketAddr,
    request: &[u8],
    allows: &[u16],
) -> Result<Option<RefusalCode>> {
    let answer = e2e::tail::exchange(address, request).await?;
    let status = http_status(&answer).context("no HTTP answer")?;
    ensure!(allows.contains(&status), "HTTP {status}");
    Ok(None)
}

/// Sends frames on a socket of their own, and checks what comes back until the tail closes.
async fn session_answer(
    address: SocketAddr,
    sends: &[Send],
    expected: &Expected,
) -> Result<Option<RefusalCode>> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let url = format!("ws://{address}/v1/session");
    let (mut socket, _) = timeout(PATIENCE, tokio_tungstenite::client_async(url, stream)).await??;
    for send in sends {
        // A tail that has refused already reads no more; its answer is looked at below.
        let _ = match send {
            Send::Frame(bytes) => socket.send(Message::Binary(bytes.clone())).await,
            Send::Text(text) => socket.send(Message::text(text.as_str())).await,
            Send::Raw(bytes) => socket.get_mut().write_all(bytes).await.map_err(Into::into),
        };
    }
    if matches!(expected, Expected::NobodyReads) {
        return Ok(None);
    }
    let refusal = timeout(PATIENCE, last_answer(&mut socket, expected))
        .await
        .context("no answer")??;
    match (expected, refusal.as_ref().map(message::Refusal::code)) {
        (_, Some(code @ (RefusalCode::Internal | RefusalCode::Unspecified))) => {
            bail!("refused as {code:?}")
        }
        (Expected::Refusal(wanted), Some(code)) if code == *wanted => Ok(Some(code)),
        (Expected::Refusal(_), got) => bail!("got {got:?}: {refusal:?}"),
        (Expected::AnyRefusal, None) => bail!("closed without a refusal"),
        (_, code) => Ok(code),
    }
}

/// Reads until the tail closes; the refusal, where one came.
async fn last_answer(socket: &mut Socket, expected: &Expected) -> Result<Option<message::Refusal>> {
    let mut refusal = None;
    while let Some(Ok(answer)) = socket.next().await {
        let bytes = match answer {
            Message::Binary(bytes) => bytes,
            // The tail would wait for an answer that it can no longer read behind a broken frame.
            Message::Close(_) => break,
            _ => continue,
        };
        ensure!(refusal.is_none(), "a frame came after the refusal");
        match decode_server_frame(bytes, &Limits::default())?.message {
            Some(Reply::Refusal(it)) => {
                ensure!(!it.message.is_empty(), "a refusal without a sentence");
                refusal = Some(it);
            }
            Some(Reply::Opened(_)) if matches!(expected, Expected::Anything) => {
                socket.close(None).await?
            }
            Some(Reply::Opened(_) | Reply::StepResult(_)) => {}
            other => bail!("unexpected {other:?}"),
        }
    }
    Ok(refusal)
}
