//! `edge-lite chat`

use std::io::Write as _;

use anyhow::Result;
use edge_lite::{ChatMessage, Prompt};
use tokio::io::{AsyncBufReadExt as _, BufReader};

use crate::args::{ChatArgs, message};
use crate::engine::Engine;
use crate::generate::{stream_text, summary};

/// What a plan is made for before anybody has said anything.
const TYPICAL_TURN: &str =
    "Could you explain this to me in a few sentences, please, with one or two examples of it?";

const HELP: &str =
    "/reset forgets the conversation, /quit or end of input leaves, Ctrl-C ends an answer";

pub async fn run(args: ChatArgs) -> Result<()> {
    // The first turn as it may be: a plan is made once for all of them.
    let first = args.system.iter().map(|content| message("system", content));
    let first = first.chain([message("user", TYPICAL_TURN)]).collect();
    let request = args.sampling.request(Prompt::Chat(first));
    let mut engine = Engine::open(&args.engine, &request).await?;
    let ended = talk(&mut engine, &args).await;
    engine.finish().await;
    ended
}

/// Answers line by line, to the end of the input.
async fn talk(engine: &mut Engine, args: &ChatArgs) -> Result<()> {
    let system: Vec<ChatMessage> = args
        .system
        .iter()
        .map(|content| message("system", content))
        .collect();
    let mut messages = system.clone();
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    writeln!(std::io::stderr(), "{HELP}")?;
    loop {
        write!(std::io::stderr(), "> ")?;
        let Some(line) = lines.next_line().await? else {
            return Ok(());
        };
        match line.trim() {
            "" => continue,
            "/quit" => return Ok(()),
            "/reset" => {
                messages.clone_from(&system);
                continue;
            }
            text => messages.push(message("user", text)),
        }
        // The whole conversation goes into the template each time; a template may look back.
        let mut request = args.sampling.request(Prompt::Chat(messages.clone()));
        request.local_only = args.engine.routing.local_only;
        let report = async {
            engine.renew().await?;
            stream_text(engine.generate(request).await?).await
        };
        let report = report.await;
        match report {
            Ok(report) => {
                writeln!(std::io::stderr(), "{}", summary(&report))?;
                messages.push(message("assistant", &report.text));
            }
            // The conversation outlives a failed answer: the question can be asked again.
            Err(error) => {
                writeln!(std::io::stderr(), "error: {error:#}")?;
                messages.pop();
            }
        }
    }
}
