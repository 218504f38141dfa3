//! Random requests over four connections, overlapping and at any alignment, against a model: while epochs are cut and committed
//! underneath, after an orderly stop, and after a crash.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::ops::Range;

use epochgate_tests::disk::{Disk, Mode};
use epochgate_tests::nbd::{
    Answer, Client, FLUSH, FUA, NO_HOLE, READ, Request, TRIM, WRITE, ZEROES,
};
use epochgate_tests::random::Random;

const BYTES: usize = 256 << 10;
const CONNECTIONS: usize = 4;
const NOSPC: u32 = 28;
const INVAL: u32 = 22;

/// The values that a byte may have.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Values([u64; 4]);

impl Values {
    fn only(value: u8) -> Self {
        let mut values = Self::default();
        values.allow(value);
        values
    }

    fn allow(&mut self, value: u8) {
        self.0[usize::from(value) / 64] |= 1 << (value % 64);
    }

    fn allows(self, value: u8) -> bool {
        self.0[usize::from(value) / 64] & 1 << (value % 64) != 0
    }
}

impl std::fmt::Debug for Values {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let values = (0..=u8::MAX).filter(|value| self.allows(*value));
        f.debug_set().entries(values).finish()
    }
}

/// What each byte of the disk may be. Requests that are under way together may take effect in any order, so a byte that several
/// of them write has several values until somebody reads it.
#[derive(Clone)]
struct Model(Vec<Values>);

impl Model {
    fn new() -> Self {
        Self(vec![Values::only(0); BYTES])
    }

    /// What `requests` may do, all at once: a byte that is written has one of the written values afterwards, and may have any
    /// of them or the old one meanwhile. Returns (meanwhile, afterwards).
    fn after(&self, requests: &[Vec<Request>]) -> (Self, Self) {
        let (mut meanwhile, mut afterwards) = (self.clone(), self.clone());
        let changes: Vec<_> = requests
            .iter()
            .flatten()
            .filter(|request| matches!(request.kind, WRITE | ZEROES | TRIM))
            .filter_map(|request| Some((request, range(request)?)))
            .collect();
        // A trim may keep what was there, the protocol leaves it open; the others replace it.
        for (_, range) in changes.iter().filter(|(request, _)| request.kind != TRIM) {
            afterwards.0[range.clone()].fill(Values::default());
        }
        for (request, range) in changes {
            let value = request.payload.first().copied().unwrap_or(0);
            for model in [&mut meanwhile, &mut afterwards] {
                for values in &mut model.0[range.clone()] {
                    values.allow(value);
                }
            }
        }
        (meanwhile, afterwards)
    }

    /// Asserts that `data` at `start` is possible.
    #[track_caller]
    fn check(&self, start: usize, data: &[u8], when: &str) {
        for (at, value) in (start..).zip(data) {
            let values = self.0[at];
            assert!(
                values.allows(*value),
                "{when}: byte {at} is {value}, possible is {values:?}"
            );
        }
    }

    /// The same for the whole disk while nothing is under way: from then on it is what is there.
    #[track_caller]
    fn settle(&mut self, data: &[u8], when: &str) {
        assert_eq!(data.len(), BYTES, "{when}");
        self.check(0, data, when);
        self.0 = data.iter().map(|value| Values::only(*value)).collect();
    }
}

/// The bytes of a request; `None` when they are not all within the disk.
fn range(request: &Request) -> Option<Range<usize>> {
    let start = usize::try_from(request.offset).ok()?;
    let end = start.checked_add(request.length as usize)?;
    (end <= BYTES).then_some(start..end)
}

/// One request of any kind, in a few places more often than elsewhere.
fn request(random: &mut Random) -> Request {
    let hot = random.one_in(2);
    let offset = if hot {
        random.within(0..40_000)
    } else {
        random.within(0..BYTES as u64)
    };
    let longest = if random.one_in(10) { 90_000 } else { 6_000 };
    let length = random.within(1..longest).min(BYTES as u64 - offset);
    let aligned = random.one_in(3);
    let (offset, length) = if aligned {
        (
            offset / 4096 * 4096,
            (length.div_ceil(4096) * 4096).min(BYTES as u64 - offset / 4096 * 4096),
        )
    } else {
        (offset, length)
    };
    let length = u32::try_from(length).unwrap();
    let fua = if random.one_in(20) { FUA } else { 0 };
    match random.within(0..20) {
        0..8 => {
            let value = random.byte();
            Request::write(offset, vec![value; length as usize]).with(fua)
        }
        8..10 => {
            let no_hole = if random.one_in(2) { NO_HOLE } else { 0 };
            Request::new(ZEROES, offset, length).with(fua | no_hole)
        }
        10..12 => Request::new(TRIM, offset, length).with(fua),
        12 => Request::new(FLUSH, 0, 0),
        // Beyond the end: refused as a whole.
        13 => Request::write(BYTES as u64 - 100, vec![1; 101]),
        14 => Request::new(READ, BYTES as u64, 1),
        _ => Request::new(READ, offset, length),
    }
}

fn clients(disk: &Disk) -> Vec<Client> {
    (0..CONNECTIONS)
        .map(|index| Client::attach(&disk.socket(), &disk.export(), index % 2 == 0))
        .collect()
}

/// All requests of all connections at once.
fn exchange(clients: &mut [Client], requests: &[Vec<Request>]) -> Vec<Vec<Answer>> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = clients
            .iter_mut()
            .zip(requests)
            .map(|(client, requests)| scope.spawn(move || client.exchange(requests).unwrap()))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    })
}

fn read_all(client: &mut Client) -> Vec<u8> {
    let read = Request::new(READ, 0, u32::try_from(BYTES).unwrap());
    let answer = client.ask(&read).unwrap();
    assert_eq!(answer.error, 0);
    answer.data
}

fn check_answers(requests: &[Request], answers: &[Answer], meanwhile: &Model, when: &str) {
    for (request, answer) in requests.iter().zip(answers) {
        let expected = match (range(request), request.kind) {
            (None, WRITE) => NOSPC,
            (None, _) => INVAL,
            (Some(_), _) => 0,
        };
        assert_eq!(answer.error, expected, "{when}: {request:?}");
        if request.kind == READ && expected == 0 {
            let start = usize::try_from(request.offset).unwrap();
            meanwhile.check(start, &answer.data, when);
        }
    }
}

fn agrees_with_the_model(mode: Mode) {
    let random = Random::new("agrees_with_the_model");
    let mut disk = Disk::start(mode, BYTES as u64);
    let mut model = Model::new();
    for start in 0..3 {
        let mut random = random.fork(start);
        let mut connected = clients(&disk);
        for round in 0..60 {
            let when = format!("{mode:?}, start {start}, round {round}");
            // Rounds of one request each are exact; in the others requests overtake each other.
            let depth = if round % 3 == 0 {
                1
            } else {
                random.within(1..24)
            };
            let requests: Vec<Vec<Request>> = (0..CONNECTIONS)
                .map(|index| {
                    let count = if depth == 1 {
                        u64::from(index == 0)
                    } else {
                        depth
                    };
                    (0..count).map(|_| request(&mut random)).collect()
                })
                .collect();
            let (meanwhile, afterwards) = model.after(&requests);
            let answers = exchange(&mut connected, &requests);
            for (requests, answers) in requests.iter().zip(&answers) {
                check_answers(requests, answers, &meanwhile, &when);
            }
            model = afterwards;
            let reader = usize::try_from(random.within(0..CONNECTIONS as u64)).unwrap();
            let now = read_all(&mut connected[reader]);
            model.settle(&now, &when);
        }
        drop(connected);
        disk.stop();
        let image = std::fs::read(disk.image()).unwrap();
        model.settle(&image, &format!("{mode:?}: the image after a stop"));
        disk.start_again();
    }
    disk.stop();
}

#[test]
fn overlapping_requests_agree_with_a_model_in_sync_mode() {
    agrees_with_the_model(Mode::Sync);
}

#[test]
fn overlapping_requests_agree_with_a_model_in_async_mode() {
    agrees_with_the_model(Mode::Async);
}

#[test]
fn overlapping_requests_agree_with_a_model_while_a_source_commits() {
    agrees_with_the_model(Mode::Source);
}
