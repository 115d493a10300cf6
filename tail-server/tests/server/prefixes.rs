//! What a tail keeps of a session for later ones, and who may have it.

use bytes::Bytes;
use headway_wire::message::{Close, Open, Opened, Step, TokenIds, step};
use headway_wire::{Codec, PREFIX_BLOCK_POSITIONS as BLOCK, PrefixHasher, codec};

use crate::auth::{key_line, keys_file};
use crate::rig::{Client, Device, Server};

/// Of an answer.
const TOKENS: usize = 6;
/// Two blocks, and positions that are always sent.
const PROMPT_TOKENS: usize = 80;
/// Layers of the model.
const LAYERS: usize = 3;

const KEPT: &str = "headway_tail_kv_blocks{state=\"kept\"}";
const HELD: &str = "headway_tail_kv_blocks{state=\"held\"}";
const PROMISED: &str = "headway_tail_kv_blocks{state=\"promised\"}";
const REUSED: &str = "headway_tail_reused_positions_total";
const SAVED: &str = "headway_tail_saved_seconds_total{term=\"reused_prefixes\"}";

/// A prompt of token ids that depend on `seed` everywhere.
fn prompt(seed: usize, count: usize) -> Vec<u32> {
    let id = |position: usize| (seed * 7919 + position * (37 + seed) + 11) % 128;
    (0..count)
        .map(|position| u32::try_from(id(position)).unwrap())
        .collect()
}

/// How a device sends its rows.
#[derive(Clone, Copy, Debug)]
struct Sending {
    split_layer: u32,
    codec: Codec,
}

const TOKEN_IDS: Sending = Sending {
    split_layer: 0,
    codec: Codec::F32,
};

const EVERY_SENDING: [Sending; 4] = [
    TOKEN_IDS,
    Sending {
        split_layer: 1,
        codec: Codec::Bf16,
    },
    Sending {
        split_layer: 2,
        codec: Codec::F32,
    },
    Sending {
        split_layer: 2,
        codec: Codec::Int8 { group_size: 32 },
    },
];

impl Sending {
    fn device(self) -> Device {
        Device::new(self.split_layer as usize).with_codec(self.codec)
    }

    fn rows(self, step: &Step) -> Vec<Bytes> {
        match step.input.as_ref().unwrap() {
            step::Input::TokenIds(TokenIds { ids }) => ids
                .iter()
                .map(|id| Bytes::copy_from_slice(&id.to_le_bytes()))
                .collect(),
            step::Input::Activations(activations) => codec::encoded_rows(activations, self.codec)
                .map(Bytes::copy_from_slice)
                .collect(),
        }
    }

    fn digests(self, rows: &[Bytes]) -> Vec<u8> {
        let codec = (self.split_layer > 0).then_some(self.codec);
        let mut hasher = PrefixHasher::new(self.split_layer, codec);
        rows.iter()
            .filter_map(|row| hasher.push(row))
            .flatten()
            .collect()
    }

    /// The digests of the rows of these tokens.
    fn digests_of(self, token_ids: &[u32]) -> Vec<u8> {
        self.digests(&self.rows(&self.device().step(token_ids, 0, true)))
    }

    /// For a session that keeps its prefix and offers none.
    fn open(self, server: &Server, token_ids: &[u32]) -> Open {
        Open {
            codec: Some(self.codec.into()),
            max_positions: 128,
            prompt_tokens: u32::try_from(token_ids.len()).unwrap(),
            keep_prefix: true,
            ..server.open(self.split_layer)
        }
    }

    /// For a session that offers the digests of what it is going to send.
    fn offer(self, server: &Server, token_ids: &[u32]) -> Open {
        Open {
            prefix_digests: self.digests_of(token_ids).into(),
            ..self.open(server, token_ids)
        }
    }
}

fn without_keeping(open: Open) -> Open {
    Open {
        keep_prefix: false,
        ..open
    }
}

/// One open session, and what it has sent.
struct Speaker {
    client: Client,
    device: Device,
    reused: usize,
}

impl Speaker {
    async fn open(server: &Server, open: Open, sending: Sending) -> Self {
        let (client, opened) = server.session_of(open).await;
        Self::new(client, &opened, sending)
    }

    fn new(client: Client, opened: &Opened, sending: Sending) -> Self {
        Self {
            client,
            device: sending.device(),
            reused: opened.reused_positions as usize,
        }
    }

    /// Sends what the tail does not hold, and reads the answer's first tokens.
    async fn ask(&mut self, token_ids: &[u32]) -> Vec<u32> {
        if self.reused > 0 {
            // Computed, for the layers of the device, and not sent.
            let _ = self.device.step(&token_ids[..self.reused], 0, false);
        }
        let (mut rows, mut position) = (token_ids[self.reused..].to_vec(), self.reused);
        let mut tokens = Vec::new();
        while tokens.len() < TOKENS {
            let step = self.device.step(&rows, position, true);
            self.client.send(step).await;
            let result = self.client.result().await;
            position += rows.len();
            assert_eq!(result.positions as usize, position);
            rows = vec![result.token_id.unwrap()];
            tokens.extend(&rows);
        }
        tokens
    }

    async fn close(mut self) {
        self.client.send(Close {}).await;
        assert!(self.client.answer().await.is_none());
    }
}

/// Opens a session, asks and closes: the positions that were reused, and the answer.
async fn ask(
    server: &Server,
    open: Open,
    sending: Sending,
    token_ids: &[u32],
) -> (usize, Vec<u32>) {
    let mut speaker = Speaker::open(server, open, sending).await;
    let answer = speaker.ask(token_ids).await;
    let reused = speaker.reused;
    speaker.close().await;
    (reused, answer)
}

#[tokio::test]
async fn what_was_sent_before_is_not_sent_again_and_the_answer_is_the_same() {
    let token_ids = prompt(1, PROMPT_TOKENS);
    for sending in EVERY_SENDING {
        let server = Server::start(&[]).await;
        let open = without_keeping(sending.open(&server, &token_ids));
        let (_, alone) = ask(&server, open, sending, &token_ids).await;
        let offer = || sending.offer(&server, &token_ids);
        assert_eq!(
            ask(&server, offer(), sending, &token_ids).await,
            (0, alone.clone()),
            "{sending:?}"
        );
        assert_eq!(server.metric(REUSED).await, 0.0);
        for times in 1..=2 {
            let (reused, answer) = ask(&server, offer(), sending, &token_ids).await;
            assert_eq!((reused, &answer), (2 * BLOCK, &alone), "{sending:?}");
            assert_eq!(server.metric(REUSED).await, (times * 2 * BLOCK) as f64);
        }
        assert!(server.metric(SAVED).await > 0.0, "{sending:?}");
    }
}

#[tokio::test]
async fn a_row_is_always_left_to_be_sent() {
    let server = Server::start(&[]).await;
    let whole = prompt(1, 2 * BLOCK);
    let open = TOKEN_IDS.open(&server, &whole);
    let (_, answer) = ask(&server, open, TOKEN_IDS, &whole).await;
    let offer = TOKEN_IDS.offer(&server, &whole);
    assert_eq!(offer.prefix_digests.len(), 2 * 32);
    let again = ask(&server, offer, TOKEN_IDS, &whole).await;
    assert_eq!(again, (BLOCK, answer));
}

#[tokio::test]
async fn live_sessions_share_blocks_and_none_is_in_the_others_way() {
    let server = Server::start(&[]).await;
    let token_ids = prompt(2, PROMPT_TOKENS);
    let sending = TOKEN_IDS;
    let mut first = Speaker::open(&server, sending.open(&server, &token_ids), sending).await;
    let expected = first.ask(&token_ids).await;
    // 85 positions of 128 are written.
    assert_eq!(server.metric(HELD).await, (3 * LAYERS) as f64);
    let mut sharers = Vec::new();
    for _ in 0..3 {
        let offer = sending.offer(&server, &token_ids);
        sharers.push(Speaker::open(&server, offer, sending).await);
    }
    assert!(sharers.iter().all(|sharer| sharer.reused == 2 * BLOCK));
    // Nothing is held twice, and two columns are promised to each beside the last one of the first session.
    assert_eq!(server.metric(HELD).await, (3 * LAYERS) as f64);
    assert_eq!(server.metric(PROMISED).await, (7 * LAYERS) as f64);

    let mut other_end = token_ids.clone();
    other_end[2 * BLOCK..].fill(99);
    let open = without_keeping(sending.open(&server, &other_end));
    let (_, other_expected) = ask(&server, open, sending, &other_end).await;
    let [one, two, three] = &mut sharers[..] else {
        panic!("three sharers")
    };
    let (one, two, three) = tokio::join!(
        one.ask(&token_ids),
        two.ask(&other_end),
        three.ask(&token_ids)
    );
    assert_eq!([&one, &three], [&expected; 2]);
    assert_eq!(two, other_expected);

    // Who has written the blocks may leave before those who read them.
    first.close().await;
    let mut late = Speaker::open(&server, sending.offer(&server, &token_ids), sending).await;
    assert_eq!(late.reused, 2 * BLOCK);
    for sharer in sharers {
        sharer.close().await;
    }
    assert_eq!(late.ask(&token_ids).await, expected);
    late.close().await;
    server.wait_for_metric(HELD, 0.0).await;
    assert_eq!(server.metric(PROMISED).await, 0.0);
}

#[tokio::test]
async fn what_one_tenant_sent_no_other_finds() {
    let keys = key_line("acme", "one") + &key_line("acme", "three") + &key_line("globex", "two");
    let (_folder, path) = keys_file(&keys);
    let server = Server::start(&["--auth-keys", &path]).await;
    let token_ids = prompt(3, PROMPT_TOKENS);
    let sending = TOKEN_IDS;
    let speak = async |token: &str, open: Open| {
        let bearer = format!("Bearer {token}");
        let headers = [("authorization", bearer.as_str())];
        let mut client = server.upgrade(&headers).await.unwrap();
        client.send(open).await;
        let opened = client.opened().await;
        let mut speaker = Speaker::new(client, &opened, sending);
        let answer = speaker.ask(&token_ids).await;
        let reused = speaker.reused;
        speaker.close().await;
        (reused, answer)
    };
    let offer = || sending.offer(&server, &token_ids);
    let (reused, expected) = speak("one", offer()).await;
    assert_eq!(reused, 0);
    assert_eq!(
        speak("two", without_keeping(offer())).await,
        (0, expected.clone())
    );
    // Nor after the other tenant has sent the same.
    for (token, reused) in [
        ("one", 2 * BLOCK),
        // Another device of the tenant.
        ("three", 2 * BLOCK),
        ("two", 0),
        ("two", 2 * BLOCK),
        ("one", 2 * BLOCK),
    ] {
        assert_eq!(
            speak(token, offer()).await,
            (reused, expected.clone()),
            "{token}"
        );
    }
}

#[tokio::test]
async fn digests_that_nobody_knows_reuse_nothing() {
    let server = Server::start(&[]).await;
    let token_ids = prompt(4, PROMPT_TOKENS);
    let (_, expected) = {
        let open = TOKEN_IDS.open(&server, &token_ids);
        ask(&server, open, TOKEN_IDS, &token_ids).await
    };
    let digests = TOKEN_IDS.digests_of(&token_ids);
    let (first, second) = digests.split_at(32);
    let unknown = [7; 32];
    for (offered, reused) in [
        ([&unknown[..], &unknown].concat(), 0),
        // The second without the first, in the first one's place, and twice.
        ([&unknown[..], second].concat(), 0),
        ([second, first].concat(), 0),
        ([second, second].concat(), 0),
        ([first, first].concat(), BLOCK),
        ([first, &unknown].concat(), BLOCK),
        (first.to_vec(), BLOCK),
        (Vec::new(), 0),
    ] {
        let open = Open {
            prefix_digests: offered.into(),
            ..without_keeping(TOKEN_IDS.open(&server, &token_ids))
        };
        let answer = ask(&server, open, TOKEN_IDS, &token_ids).await;
        assert_eq!(answer, (reused, expected.clone()));
    }
}

#[tokio::test]
async fn digests_of_another_codec_or_split_layer_find_nothing() {
    let server = Server::start(&[]).await;
    let token_ids = prompt(5, PROMPT_TOKENS);
    let of = |split_layer, codec| Sending { split_layer, codec };
    let kept = of(1, Codec::F16);
    ask(&server, kept.open(&server, &token_ids), kept, &token_ids).await;
    for other in [
        TOKEN_IDS,
        of(2, Codec::F16),
        of(1, Codec::F32),
        of(1, Codec::Bf16),
        of(1, Codec::Int8 { group_size: 32 }),
    ] {
        let own = without_keeping(other.offer(&server, &token_ids));
        // Those of the session that is kept: what comes behind them would be read in another way.
        let foreign = Open {
            prefix_digests: kept.digests_of(&token_ids).into(),
            ..own.clone()
        };
        for (open, whose) in [(own, "its own"), (foreign, "the other's")] {
            let (_, opened) = server.session_of(open).await;
            assert_eq!(opened.reused_positions, 0, "{other:?} offers {whose}");
        }
    }
    let offer = kept.offer(&server, &token_ids);
    assert_eq!(ask(&server, offer, kept, &token_ids).await.0, 2 * BLOCK);
}

#[tokio::test]
async fn a_session_that_keeps_no_prefix_leaves_nothing() {
    let server = Server::start(&[]).await;
    let token_ids = prompt(6, PROMPT_TOKENS);
    let open = without_keeping(TOKEN_IDS.open(&server, &token_ids));
    let mut speaker = Speaker::open(&server, open, TOKEN_IDS).await;
    speaker.ask(&token_ids).await;
    let offer = without_keeping(TOKEN_IDS.offer(&server, &token_ids));
    let (_, opened) = server.session_of(offer.clone()).await;
    assert_eq!(opened.reused_positions, 0, "while it lives");
    speaker.close().await;
    server.wait_for_metric("headway_tail_sessions", 0.0).await;
    assert_eq!(
        (server.metric(KEPT).await, server.metric(HELD).await),
        (0.0, 0.0)
    );
    let (_, opened) = server.session_of(offer).await;
    assert_eq!(opened.reused_positions, 0, "after it");
}

#[tokio::test]
async fn a_session_that_reuses_and_keeps_none_leaves_what_was_there() {
    let server = Server::start(&[]).await;
    let token_ids = prompt(6, 126);
    let kept = &token_ids[..PROMPT_TOKENS];
    ask(&server, TOKEN_IDS.open(&server, kept), TOKEN_IDS, kept).await;
    let offer = TOKEN_IDS.offer(&server, &token_ids);
    let open = Open {
        max_positions: 160,
        ..without_keeping(offer.clone())
    };
    assert_eq!(ask(&server, open, TOKEN_IDS, &token_ids).await.0, 2 * BLOCK);
    server.wait_for_metric(HELD, 0.0).await;
    assert_eq!(server.metric(KEPT).await, (2 * LAYERS) as f64);
    let (_, opened) = server.session_of(offer).await;
    assert_eq!(opened.reused_positions as usize, 2 * BLOCK);
}

#[tokio::test]
async fn what_nobody_uses_for_the_retention_time_is_forgotten() {
    let server = Server::start(&["--prefix-retention-seconds", "1"]).await;
    let token_ids = prompt(7, PROMPT_TOKENS);
    let mut live = Speaker::open(&server, TOKEN_IDS.open(&server, &token_ids), TOKEN_IDS).await;
    let expected = live.ask(&token_ids).await;
    let offer = || without_keeping(TOKEN_IDS.offer(&server, &token_ids));
    assert_eq!(
        ask(&server, offer(), TOKEN_IDS, &token_ids).await,
        (2 * BLOCK, expected.clone())
    );
    live.close().await;
    server.wait_for_metric(HELD, 0.0).await;
    server.wait_for_metric(KEPT, 0.0).await;
    let free = server
        .metric("headway_tail_kv_blocks{state=\"free\"}")
        .await;
    assert!(free > 0.0);
    assert_eq!(
        ask(&server, offer(), TOKEN_IDS, &token_ids).await,
        (0, expected)
    );
}

#[tokio::test]
async fn without_retention_nothing_is_ever_kept() {
    let server = Server::start(&["--prefix-retention-seconds", "0"]).await;
    let token_ids = prompt(8, PROMPT_TOKENS);
    let mut live = Speaker::open(&server, TOKEN_IDS.open(&server, &token_ids), TOKEN_IDS).await;
    live.ask(&token_ids).await;
    let offer = || TOKEN_IDS.offer(&server, &token_ids);
    assert_eq!(ask(&server, offer(), TOKEN_IDS, &token_ids).await.0, 0);
    live.close().await;
    server.wait_for_metric(HELD, 0.0).await;
    assert_eq!(server.metric(KEPT).await, 0.0);
    assert_eq!(ask(&server, offer(), TOKEN_IDS, &token_ids).await.0, 0);
    assert_eq!(server.metric(REUSED).await, 0.0);
}

#[tokio::test]
async fn what_is_kept_makes_room_for_sessions() {
    // Twelve blocks of 32 positions, 2 heads of 16, keys and values in f32: four columns of three layers.
    let server = Server::start(&["--max-kv-bytes", "98304"]).await;
    let (old, new) = (prompt(9, 120), prompt(10, 120));
    let open = TOKEN_IDS.open(&server, &old);
    let (_, expected) = ask(&server, open, TOKEN_IDS, &old).await;
    server.wait_for_metric(HELD, 0.0).await;
    assert_eq!(server.metric(KEPT).await, (3 * LAYERS) as f64);

    let alone = {
        let spacious = Server::start(&[]).await;
        let open = TOKEN_IDS.open(&spacious, &new);
        ask(&spacious, open, TOKEN_IDS, &new).await.1
    };
    // It needs all there is.
    let mut needy = Speaker::open(
        &server,
        without_keeping(TOKEN_IDS.open(&server, &new)),
        TOKEN_IDS,
    )
    .await;
    assert_eq!(needy.ask(&new).await, alone);
    assert_eq!(server.metric(KEPT).await, 0.0);
    assert_eq!(
        server.metric("headway_tail_sessions_evicted_total").await,
        0.0
    );
    needy.close().await;
    server.wait_for_metric(HELD, 0.0).await;
    let offer = TOKEN_IDS.offer(&server, &old);
    assert_eq!(ask(&server, offer, TOKEN_IDS, &old).await, (0, expected));
}

#[tokio::test]
async fn rows_that_differ_behind_the_reused_part_get_their_own_answer() {
    let old = prompt(11, 100);
    for sending in EVERY_SENDING {
        let server = Server::start(&[]).await;
        ask(&server, sending.open(&server, &old), sending, &old).await;
        for differing in [2 * BLOCK, 2 * BLOCK + 5, 3 * BLOCK - 1, 99] {
            let mut new = old.clone();
            new[differing] = (new[differing] + 1) % 128;
            let alone = without_keeping(sending.open(&server, &new));
            let (_, expected) = ask(&server, alone, sending, &new).await;
            let offer = without_keeping(sending.offer(&server, &new));
            let (reused, answer) = ask(&server, offer, sending, &new).await;
            assert_eq!(reused, differing / BLOCK * BLOCK, "{sending:?}");
            assert_eq!(answer, expected, "{sending:?}, {differing}");
        }
    }
}

#[tokio::test]
async fn who_sends_other_rows_than_offered_makes_nothing_reusable_under_the_offer() {
    let (offered, sent) = (prompt(12, PROMPT_TOKENS), prompt(13, PROMPT_TOKENS));
    for sending in EVERY_SENDING {
        let server = Server::start(&[]).await;
        let lie = Open {
            prefix_digests: sending.digests_of(&offered).into(),
            ..sending.open(&server, &sent)
        };
        let (reused, of_sent) = ask(&server, lie, sending, &sent).await;
        assert_eq!(reused, 0);
        let honest = |token_ids: &[u32]| without_keeping(sending.offer(&server, token_ids));
        assert_eq!(ask(&server, honest(&offered), sending, &offered).await.0, 0);
        // What it has sent is there under its own digests.
        let again = ask(&server, honest(&sent), sending, &sent).await;
        assert_eq!(again, (2 * BLOCK, of_sent), "{sending:?}");
    }
}

#[tokio::test]
async fn other_rows_behind_a_reused_part_are_kept_under_their_own_digests() {
    let server = Server::start(&[]).await;
    let old = prompt(14, 110);
    let new = [&old[..2 * BLOCK], &prompt(15, 46)].concat();
    let (_, of_old) = ask(&server, TOKEN_IDS.open(&server, &old), TOKEN_IDS, &old).await;
    // It offers all three blocks of the old prompt, of which it has the last one sent anew, and is right in two.
    let lie = Open {
        prefix_digests: [&TOKEN_IDS.digests_of(&old)[..2 * 32], &[3; 32]]
            .concat()
            .into(),
        ..TOKEN_IDS.open(&server, &new)
    };
    let (reused, of_new) = ask(&server, lie, TOKEN_IDS, &new).await;
    assert_eq!(reused, 2 * BLOCK);
    for (token_ids, answer) in [(&old, of_old), (&new, of_new)] {
        let offer = TOKEN_IDS.offer(&server, token_ids);
        let again = ask(&server, offer, TOKEN_IDS, token_ids).await;
        assert_eq!(again, (3 * BLOCK, answer));
    }
}

#[tokio::test]
async fn digests_of_two_prompts_in_one_offer_reuse_no_more_than_one_of_them() {
    let server = Server::start(&[]).await;
    let (a, b) = (prompt(16, PROMPT_TOKENS), prompt(17, PROMPT_TOKENS));
    for token_ids in [&a, &b] {
        let open = TOKEN_IDS.open(&server, token_ids);
        ask(&server, open, TOKEN_IDS, token_ids).await;
    }
    // Its third block is that of a longer prompt that begins as b does.
    let longer_b = [&b[..2 * BLOCK], &prompt(18, 40)].concat();
    let expected = {
        let untouched = Server::start(&[]).await;
        let open = TOKEN_IDS.open(&untouched, &longer_b);
        ask(&untouched, open, TOKEN_IDS, &longer_b).await.1
    };
    let mixed = [
        &TOKEN_IDS.digests_of(&a)[..32],
        &TOKEN_IDS.digests_of(&b)[32..64],
    ]
    .concat();
    let liar = Open {
        prefix_digests: mixed.into(),
        ..TOKEN_IDS.open(&server, &longer_b)
    };
    let (reused, _) = ask(&server, liar, TOKEN_IDS, &longer_b).await;
    let offer = TOKEN_IDS.offer(&server, &longer_b);
    let (_, answer) = ask(&server, offer, TOKEN_IDS, &longer_b).await;
    assert_eq!(answer, expected, "somebody else's answer was changed");
    assert_eq!(
        reused, BLOCK,
        "nobody has ever sent these two blocks together"
    );
}

/// Sends the prompt and then `drafts` in verifying steps, as long as `max_rows` positions are held. Returns the rows
/// that the tail holds then, with the tokens that they are of, and the rows as the tail was sent them with a wrong
/// guess in the place of the last row of the first block.
async fn draft_past_blocks(
    speaker: &mut Speaker,
    sending: Sending,
    start: &[u32],
    known: &[u32],
    max_rows: usize,
) -> (Vec<Bytes>, Option<Vec<Bytes>>) {
    let step = speaker.device.step(start, 0, true);
    let (mut rows, mut rejected) = (sending.rows(&step), None);
    speaker.client.send(step).await;
    let mut last = speaker.client.result().await.token_id.unwrap();
    let mut answered = 1;
    while rows.len() < max_rows {
        let position = rows.len();
        let mut draft: Vec<u32> = known[answered..].iter().copied().take(3).collect();
        // Wrong where it would be the last row of the first block; right everywhere else.
        if rejected.is_none()
            && let Some(wrong) = (BLOCK - 1).checked_sub(position + 1)
            && let Some(guess) = draft.get_mut(wrong)
        {
            *guess = (*guess + 1) % 128;
        }
        speaker.device.rewind(position);
        let ids = [&[last], &draft[..]].concat();
        let mut step = speaker.device.step(&ids, position, true);
        step.draft = Some(TokenIds { ids: draft });
        let sent = sending.rows(&step);
        speaker.client.send(step).await;
        let result = speaker.client.result().await;
        rows.extend_from_slice(&sent);
        if rows.len() >= BLOCK && result.positions as usize == BLOCK - 1 {
            rejected = Some(rows[..BLOCK].to_vec());
        }
        rows.truncate(result.positions as usize);
        answered += result.draft_accepted as usize + 1;
        last = result.token_id.unwrap();
    }
    (rows, rejected)
}

#[tokio::test]
async fn accepted_guesses_become_part_of_what_is_reused_and_rejected_ones_do_not() {
    for sending in EVERY_SENDING {
        let server = Server::start(&[]).await;
        let start = prompt(19, 28);
        // The answer, token by token.
        let mut alone = Speaker::open(
            &server,
            without_keeping(sending.open(&server, &start)),
            sending,
        )
        .await;
        let mut known = Vec::new();
        let (mut rows, mut position) = (start.clone(), 0);
        while known.len() < 60 {
            alone
                .client
                .send(alone.device.step(&rows, position, true))
                .await;
            position += rows.len();
            rows = vec![alone.client.result().await.token_id.unwrap()];
            known.extend(&rows);
        }
        alone.close().await;

        let mut drafting = Speaker::open(&server, sending.open(&server, &start), sending).await;
        let (rows, rejected) = draft_past_blocks(&mut drafting, sending, &start, &known, 70).await;
        drafting.close().await;
        let rejected = rejected.expect("a guess at the end of the first block was rejected");
        assert_ne!(rejected, rows[..BLOCK]);

        let whole = [&start[..], &known].concat();
        let next = &whole[..rows.len()];
        let reused = async |rows: &[Bytes]| {
            let open = Open {
                prefix_digests: sending.digests(rows).into(),
                ..without_keeping(sending.open(&server, next))
            };
            ask(&server, open, sending, next).await
        };
        assert_eq!(reused(&rejected).await.0, 0, "{sending:?}");
        let (_, expected) = reused(&[]).await;
        assert_eq!(reused(&rows).await, (2 * BLOCK, expected), "{sending:?}");
    }
}
