//! The checker over the shipping machines: nothing may be found. Larger bounds: `cargo run -p model -- --help`.

use model::check::{Until, check, good_runs_end};
use model::scenarios::scenarios;
use model::{Bounds, Fault, Protocol};

#[test]
fn every_invariant_holds_in_every_state() {
    for scenario in scenarios() {
        let protocol = Protocol {
            bounds: scenario.bounds,
            mutation: None,
        };
        let findings = check(protocol, Until::Explored, 2, None);
        assert_eq!(findings.broken, [], "{}", scenario.name);
        assert!(findings.complete, "{}", scenario.name);
        for name in scenario.reaches {
            assert!(
                findings.reached.contains(name),
                "{}: nothing was {name}",
                scenario.name
            );
        }
    }
}

#[test]
fn every_run_without_further_faults_comes_to_rest() {
    let protocol = Protocol {
        bounds: Bounds {
            epochs: 2,
            steps: 2,
            in_flight: 2,
            faults: 1,
            kinds: Fault::ALL.to_vec(),
            protect_again: true,
        },
        mutation: None,
    };
    assert!(good_runs_end(&protocol));
}

/// Requests that a network brings twice and late, while what they belong to was given up and begun anew.
#[test]
fn seals_and_drains_that_come_late_do_no_harm() {
    let protocol = Protocol {
        bounds: Bounds {
            epochs: 2,
            steps: 1,
            in_flight: 2,
            faults: 3,
            kinds: vec![Fault::LateSeal, Fault::LateRequest, Fault::LinkBreak],
            protect_again: false,
        },
        mutation: None,
    };
    let findings = check(protocol, Until::Explored, 2, None);
    assert_eq!(findings.broken, []);
    assert!(findings.complete);
    assert!(findings.reached.contains(&"protected again after a loss"));
}
