//! Random histories against the model, reopened at any point.

use proptest::prelude::*;

use super::model::{Model, call, durable, open, run, snapshot};
use crate::inspect;

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn log_holds_what_the_model_holds(calls in prop::collection::vec(call(), 1..40)) {
        let dir = tempfile::tempdir().unwrap();
        let mut model = Model::new();
        let mut slot = Some(open(dir.path()).unwrap().0);
        for call in &calls {
            let expected = model.call(call);
            let result = run(&mut slot, dir.path(), call);
            prop_assert_eq!(result.is_ok(), expected, "{:?} gave {:?}", call, result);
            prop_assert_eq!(durable(slot.as_ref().unwrap()), model.durable.clone(), "after {:?}", call);
        }
        let verdict = inspect::verify(dir.path()).unwrap();
        prop_assert!(verdict.is_whole() && verdict.repairable.is_empty(), "{:?}", verdict);
        drop(slot);

        let (log, recovered) = open(dir.path()).unwrap();
        prop_assert_eq!(durable(&log), model.durable.clone());
        prop_assert!(recovered.unapplied.iter().eq(model.durable.epochs.keys()));
        prop_assert_eq!(recovered.dropped_epochs, model.pending.keys().copied().collect::<Vec<_>>());
        drop(log);
        let before = snapshot(dir.path());
        let report = inspect::inspect(dir.path()).unwrap();
        prop_assert_eq!(&report.state, &model.durable.state);
        drop(open(dir.path()).unwrap());
        prop_assert_eq!(before, snapshot(dir.path()), "the second recovery changed something");
    }
}
