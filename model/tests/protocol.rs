//! The checker over the shipping machines: nothing may be found. Larger bounds: `cargo run -p model -- --help`.

use model::check::{Until, check, good_runs_end};
use model::rules::Rule;
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
            kinds: Fault::REAL.to_vec(),
            protect_again: true,
        },
        mutation: None,
    };
    assert!(good_runs_end(&protocol));
}

/// Not a fault of today's transports, and not survived: docs/testing.md says what has to come with others.
#[test]
fn a_seal_that_arrives_after_its_source_has_given_up_is_not_survived_yet() {
    let protocol = Protocol {
        bounds: Bounds {
            epochs: 3,
            steps: 2,
            in_flight: 2,
            faults: 1,
            kinds: vec![Fault::LateSeal],
            protect_again: false,
        },
        mutation: None,
    };
    let rule = Rule::OutputCommit;
    let findings = check(protocol, Until::Broken(rule), 1, None);
    assert!(findings.broken.iter().any(|(broken, _)| *broken == rule));
}
