use proptest::prelude::*;

use super::*;

const N: NodeId = NodeId([7; 32]);

fn secs(s: f64) -> Duration {
    Duration::from_secs_f64(s)
}

fn leader() -> Book {
    let mut book = Book::default();
    book.lead(3);
    book.applied(secs(100.0), 3);
    book
}

#[test]
fn nothing_is_granted_before_an_entry_of_the_own_term() {
    let mut book = Book::default();
    assert_eq!(book.grant(secs(1.0), N, 5), Err(NoGrant::NotLeading));
    book.lead(3);
    book.applied(secs(1.0), 2);
    assert_eq!(book.grant(secs(1.0), N, 5), Err(NoGrant::TooNew));
    book.applied(secs(2.0), 3);
    assert_eq!(book.grant(secs(2.0), N, 5), Ok(Grant { term: 3, ttl_ms: 6000, revision: 5 }));
    book.step_down();
    assert_eq!(book.grant(secs(2.0), N, 5), Err(NoGrant::NotLeading));
    assert_eq!(book.judge(secs(99.0), N, true), Verdict::Unknown);
}

#[test]
fn a_new_leader_judges_nobody_for_a_whole_lease() {
    let book = leader();
    assert_eq!(book.judge(secs(106.17), N, true), Verdict::Unknown);
    assert_eq!(book.judge(secs(106.18), N, true), Verdict::Expired { term: 3 });
    assert_eq!(book.judge(secs(100.0), N, false), Verdict::Expired { term: 3 }, "no lease, nothing to wait for");
}

#[test]
fn a_grant_holds_for_its_length_and_the_slack() {
    let mut book = leader();
    book.grant(secs(110.0), N, 1).unwrap();
    assert_eq!(book.judge(secs(116.17), N, true), Verdict::Held { until: secs(116.18) });
    assert_eq!(book.judge(secs(116.18), N, true), Verdict::Expired { term: 3 });
}

#[test]
fn recent_signs_of_life_protect_every_machine() {
    let mut book = leader();
    book.heard(secs(200.0), N);
    assert_eq!(book.judge(secs(202.9), N, false), Verdict::Held { until: secs(203.0) });
    assert_eq!(book.begin_takeover(secs(202.9), N, true), Err(Verdict::Held { until: secs(203.0) }));
    assert_eq!(book.begin_takeover(secs(203.0), N, false), Ok(3));
}

#[test]
fn an_absence_extends_until_its_node_ends_it() {
    let mut book = leader();
    book.absence(secs(200.0), N, secs(60.0));
    assert_eq!(book.judge(secs(261.0), N, false), Verdict::Held { until: secs(261.8) });
    book.absence(secs(200.0), N, secs(1.0));
    assert_eq!(
        book.judge(secs(261.0), N, true),
        Verdict::Held { until: secs(261.8) },
        "a shorter one takes nothing back"
    );
    book.absence_ended(N);
    assert_eq!(book.judge(secs(261.0), N, true), Verdict::Expired { term: 3 });
}

#[test]
fn renewals_wait_for_the_outcome_of_every_takeover() {
    let mut book = leader();
    assert_eq!(book.begin_takeover(secs(200.0), N, true), Ok(3));
    assert_eq!(book.begin_takeover(secs(200.0), N, true), Ok(3));
    book.end_takeover(3, N);
    assert_eq!(book.grant(secs(200.1), N, 1), Err(NoGrant::TakeoverPending));
    book.end_takeover(2, N);
    assert_eq!(book.grant(secs(200.1), N, 1), Err(NoGrant::TakeoverPending), "of another term");
    book.end_takeover(3, N);
    assert!(book.grant(secs(200.1), N, 1).is_ok());
}

#[test]
fn the_book_forgets_what_has_ended() {
    let mut book = leader();
    book.grant(secs(200.0), N, 1).unwrap();
    book.absence(secs(200.0), N, secs(60.0));
    book.heard(secs(200.0), N);
    let before = book.clone();
    book.sweep(secs(201.0));
    assert_eq!(book, before);
    book.sweep(secs(300.0));
    assert_eq!(book, leader());
}

#[test]
fn a_machine_freezes_before_its_lease_ends_and_dies_if_it_cannot() {
    assert_eq!(phase(secs(4.4), secs(6.0)), Phase::Run);
    assert_eq!(phase(secs(4.5), secs(6.0)), Phase::Freeze);
    assert_eq!(phase(secs(5.4), secs(6.0)), Phase::Freeze);
    assert_eq!(phase(secs(5.5), secs(6.0)), Phase::KillUnlessFrozen);
}

#[test]
fn thawing_needs_a_lease_and_a_view_that_still_names_the_owner() {
    let mut holder = Holder::default();
    assert!(!holder.may_thaw(secs(1.0), 100, true), "never granted");
    holder.granted(secs(10.0), &Grant { term: 1, ttl_ms: 6000, revision: 50 });
    holder.granted(secs(9.0), &Grant { term: 1, ttl_ms: 6000, revision: 40 });
    assert_eq!(holder.deadline(), Some(secs(16.0)), "an older grant that comes late takes nothing back");
    assert!(holder.may_thaw(secs(11.0), 50, true));
    assert!(!holder.may_thaw(secs(11.0), 49, true), "the view is older than the grant");
    assert!(!holder.may_thaw(secs(11.0), 60, false), "another owner");
    assert!(!holder.may_thaw(secs(14.6), 60, true), "about to end");
    assert!(!holder.clone().absent(secs(16.0), secs(12.0), secs(60.0)), "it may have been taken over already");
    assert!(holder.absent(secs(15.9), secs(12.0), secs(60.0)));
    assert_eq!(holder.deadline(), Some(secs(72.0)));
    holder.returned();
    assert_eq!(holder.deadline(), Some(secs(16.0)));
}

/// One step of a schedule. Numbers choose among what is there, modulo its size.
#[derive(Debug, Clone)]
enum Step {
    Advance(u16),
    /// Just long enough that the leader may judge the holder's lease expired.
    Expire,
    /// A renewal without any delay: the tightest case.
    Renew,
    Send,
    Arrive(u8),
    ReadIndex(u8),
    Grant(u8),
    Answer(u8),
    Elect(u8),
    FirstEntry,
    Judge,
    Decide,
    PlanAbsence(u16),
    Return,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (1u16..3000).prop_map(Step::Advance),
        2 => Just(Step::Expire),
        2 => Just(Step::Renew),
        4 => Just(Step::Send),
        4 => any::<u8>().prop_map(Step::Arrive),
        4 => any::<u8>().prop_map(Step::ReadIndex),
        4 => any::<u8>().prop_map(Step::Grant),
        4 => any::<u8>().prop_map(Step::Answer),
        1 => (0u8..3).prop_map(Step::Elect),
        2 => Just(Step::FirstEntry),
        5 => Just(Step::Judge),
        1 => Just(Step::Decide),
        1 => (1u16..10_000).prop_map(Step::PlanAbsence),
        1 => Just(Step::Return),
    ];
    proptest::collection::vec(step, 1..300)
}

/// A renewal on its way. Stages may be as late as the schedule likes.
#[derive(Debug)]
struct Renewal {
    sent: Duration,
    leader: Option<usize>,
    confirmed: bool,
    grant: Option<Grant>,
    answered: bool,
}

struct World {
    now_ms: f64,
    rates: [f64; 4],
    books: Vec<Book>,
    terms: [u64; 3],
    /// Who can reach a quorum. Deposed leaders do not know it.
    leader: usize,
    holder: Holder,
    renewals: Vec<Renewal>,
    taking: Option<u64>,
}

impl World {
    fn new(rates: [f64; 4]) -> Self {
        let mut world = World {
            now_ms: 0.0,
            rates,
            books: vec![Book::default(); 3],
            terms: [0; 3],
            leader: 0,
            holder: Holder::default(),
            renewals: vec![],
            taking: None,
        };
        world.elect(0);
        world
    }

    /// Node 3 is the holder. Origins differ, rates differ by up to 1 % each.
    fn clock(&self, node: usize) -> Duration {
        Duration::from_secs_f64(node as f64 * 1000.0 + self.now_ms / 1000.0 * self.rates[node])
    }

    fn elect(&mut self, who: usize) {
        let term = self.terms.iter().max().unwrap() + 1;
        (self.leader, self.terms[who]) = (who, term);
        self.books[who].lead(term);
    }

    fn pick(&self, n: u8, ready: impl Fn(&Renewal) -> bool) -> Option<usize> {
        let open: Vec<usize> = (0..self.renewals.len()).filter(|i| ready(&self.renewals[*i])).collect();
        (!open.is_empty()).then(|| open[n as usize % open.len()])
    }

    fn holds(&self) -> bool {
        self.holder.deadline().is_some_and(|deadline| self.clock(3) < deadline)
    }

    /// The steps of a renewal's way to a leader and back.
    fn exchange(&mut self, step: &Step) {
        match step {
            Step::Send => {
                let sent = self.clock(3);
                self.renewals.push(Renewal { sent, leader: None, confirmed: false, grant: None, answered: false });
            }
            Step::Arrive(n) => {
                if let Some(i) = self.pick(*n, |r| r.leader.is_none()) {
                    self.renewals[i].leader = Some(*n as usize % 3);
                }
            }
            // Only who reaches a quorum now completes the round.
            Step::ReadIndex(n) => {
                let leader = self.leader;
                if let Some(i) = self.pick(*n, |r| r.leader == Some(leader) && !r.confirmed) {
                    self.renewals[i].confirmed = true;
                }
            }
            Step::Grant(n) => {
                if let Some(i) = self.pick(*n, |r| r.confirmed && r.grant.is_none()) {
                    let at = self.renewals[i].leader.unwrap_or(0);
                    let now = self.clock(at);
                    self.renewals[i].grant = self.books[at].grant(now, N, 0).ok();
                }
            }
            Step::Answer(n) => {
                if let Some(i) = self.pick(*n, |r| r.grant.is_some() && !r.answered) {
                    let (sent, grant) = (self.renewals[i].sent, self.renewals[i].grant.unwrap());
                    self.renewals[i].answered = true;
                    self.holder.granted(sent, &grant);
                }
            }
            _ => {}
        }
    }

    fn step(&mut self, step: &Step) -> Result<(), String> {
        match step {
            Step::Advance(ms) => self.now_ms += f64::from(*ms),
            Step::Expire => {
                for _ in 0..800 {
                    let now = self.clock(self.leader);
                    if matches!(self.books[self.leader].judge(now, N, true), Verdict::Expired { .. }) {
                        break;
                    }
                    self.now_ms += 10.0;
                }
                return self.step(&Step::Judge);
            }
            Step::Renew => {
                let now = self.clock(self.leader);
                if let Ok(grant) = self.books[self.leader].grant(now, N, 0) {
                    self.holder.granted(self.clock(3), &grant);
                }
            }
            Step::Send | Step::Arrive(_) | Step::ReadIndex(_) | Step::Grant(_) | Step::Answer(_) => self.exchange(step),
            Step::Elect(who) => self.elect(*who as usize),
            Step::FirstEntry => {
                let (now, term) = (self.clock(self.leader), self.terms[self.leader]);
                self.books[self.leader].applied(now, term);
                // What an earlier leader proposed is decided before: here it was lost, and the holder may go on.
                self.taking = self.taking.filter(|judged| *judged == term);
            }
            Step::Judge => {
                let now = self.clock(self.leader);
                if let Ok(term) = self.books[self.leader].begin_takeover(now, N, true) {
                    self.taking = Some(term);
                }
            }
            Step::Decide => {
                if let Some(term) = self.taking.take() {
                    self.books[self.leader].end_takeover(term, N);
                    // Nobody but the new owner's lease counts from here. The holder reads of its new epoch before anything is granted for it: start over.
                    self.holder = Holder::default();
                    self.renewals.clear();
                }
            }
            Step::PlanAbsence(ms) => {
                let (sent, length) = (self.clock(3), Duration::from_millis((*ms).into()));
                for (i, book) in self.books.iter_mut().enumerate() {
                    let now = Duration::from_secs_f64(i as f64 * 1000.0 + self.now_ms / 1000.0 * self.rates[i]);
                    book.absence(now, N, length);
                }
                self.holder.absent(sent, sent, length);
            }
            Step::Return => {
                self.holder.returned();
                self.books.iter_mut().for_each(|book| book.absence_ended(N));
            }
        }
        match self.taking {
            Some(_) if self.holds() => Err(format!("taken while held, after {step:?}")),
            _ => Ok(()),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// I7: from the judgement until its outcome is applied, the holder never believes that it holds.
    #[test]
    fn no_takeover_is_judged_while_the_holder_believes_that_it_holds(
        rates in proptest::array::uniform4(0.99f64..1.01),
        steps in steps(),
    ) {
        let mut world = World::new(rates);
        for step in &steps {
            if let Err(broken) = world.step(step) {
                prop_assert!(false, "{broken}");
            }
        }
    }
}

/// The property test can fail: without the slack, a fast leader takes over too early.
#[test]
fn clocks_beyond_the_allowed_rates_do_break_the_rule() {
    let mut world = World::new([1.05, 1.0, 1.0, 0.99]);
    let script = [
        Step::FirstEntry,
        Step::Advance(7000),
        Step::Send,
        Step::Arrive(0),
        Step::ReadIndex(0),
        Step::Grant(0),
        Step::Answer(0),
        Step::Advance(5950),
        Step::Judge,
    ];
    assert!(script.iter().any(|step| world.step(step).is_err()));
}
