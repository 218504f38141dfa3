//! Checkpoints and failovers of a real guest.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{Bench, MEMORY_MIB, base_copy, differing_pages, sigkill};
use qemu_glue::{
    Error, GuestRam, PageSet, PauseParts, Role, SourceVm, StandbyVm, TrackerChoice, TrackerKind,
    VmEvent,
};

const EPOCHS: usize = 20;

fn shadow_of(bench: &Bench) -> Arc<GuestRam> {
    let d = &bench.description;
    Arc::new(GuestRam::create(&d.ram_dir, &d.name, Role::Standby, d.memory_bytes()).unwrap())
}

async fn running(bench: &Bench) -> SourceVm {
    let mut vm = SourceVm::launch(&bench.description, &bench.source(), &[])
        .await
        .unwrap();
    vm.resume().await.unwrap();
    bench.report("source", 3).await;
    vm
}

/// Checkpoints `epochs` times into `shadow` and compares it with the stopped guest each time. Returns the last device
/// state and the parts of a last pause without a comparison in it.
async fn protect(vm: &mut SourceVm, shadow: &GuestRam, epochs: usize) -> (Vec<u8>, PauseParts) {
    let mut pages = PageSet::default();
    for epoch in 0..epochs {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let mut stopped = vm.stop().await.unwrap();
        stopped.save(&mut pages).await.unwrap();
        shadow.write_pages(&pages).unwrap();
        assert!(!pages.is_empty(), "a running guest writes memory");
        assert_eq!(
            differing_pages(stopped.vm().ram(), shadow),
            [0; 0],
            "epoch {epoch}"
        );
        stopped.resume().await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(20)).await;
    let mut stopped = vm.stop().await.unwrap();
    let state = stopped.save(&mut pages).await.unwrap();
    let parts = stopped.resume().await.unwrap();
    shadow.write_pages(&pages).unwrap();
    (state.into_vec(), parts)
}

async fn fail_over(name: &str, choice: TrackerChoice, kind: TrackerKind) {
    let bench = Bench::new(name, choice);
    let mut vm = running(&bench).await;
    let shadow = shadow_of(&bench);
    assert_eq!(vm.start_tracking().await.unwrap(), kind);
    base_copy(&mut vm, &shadow).await;
    let standby = StandbyVm::launch(
        &bench.description,
        &bench.standby(),
        &[],
        Arc::clone(&shadow),
    )
    .await
    .unwrap();
    assert_eq!(vm.fingerprint().differences(standby.fingerprint()), [""; 0]);
    let (state, parts) = protect(&mut vm, &shadow, EPOCHS).await;
    assert!(
        parts.total >= parts.stop + parts.device_state + parts.resume,
        "{parts:?}"
    );

    let before = bench.report("source", 0).await;
    sigkill(vm.pid());
    vm.kill().await;
    let (mut vm, times) = standby.resume_from(&state).await.unwrap();
    println!(
        "{name}: pause {parts:?}, {} bytes of device state, takeover {times:?}",
        state.len()
    );
    let after = bench.report("standby", before.seq + 5).await;
    assert_eq!(after.run, before.run, "the guest was started anew");
    assert!(after.memory_ok, "{after:?}");

    // The taken-over VM can be protected again.
    assert_eq!(vm.start_tracking().await.unwrap(), kind);
    let next = shadow_of(&bench);
    base_copy(&mut vm, &next).await;
    protect(&mut vm, &next, 3).await;
    bench.report("standby", after.seq + 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_goes_on_after_a_failover_with_the_pagemap_tracker() {
    fail_over("fo-pagemap", TrackerChoice::Pagemap, TrackerKind::Pagemap).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_goes_on_after_a_failover_with_the_hash_tracker() {
    fail_over("fo-hash", TrackerChoice::Hash, TrackerKind::Hash).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_that_is_given_up_loses_no_pages() {
    let bench = Bench::new("given-up", TrackerChoice::Auto);
    let mut vm = running(&bench).await;
    let shadow = shadow_of(&bench);
    assert!(matches!(vm.stop().await, Err(Error::NotTracking)));
    vm.start_tracking().await.unwrap();
    base_copy(&mut vm, &shadow).await;
    let mut pages = PageSet::default();
    for round in 0..10_u32 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let mut stopped = vm.stop().await.unwrap();
        // Give up at several points: before the save, and some way into it.
        if round > 0 {
            let limit = Duration::from_micros(u64::from(round) * 150);
            drop(tokio::time::timeout(limit, stopped.save(&mut pages)).await);
        }
        if round % 2 == 0 {
            stopped.resume().await.unwrap();
        }
        vm.resume().await.unwrap();
        // Whatever was saved to the end before its time was up counts; the rest must come again.
        shadow.write_pages(&pages).unwrap();
    }
    let mut stopped = vm.stop().await.unwrap();
    let state = stopped.save(&mut pages).await.unwrap().into_vec();
    assert!(matches!(
        stopped.save(&mut PageSet::default()).await,
        Err(Error::DeviceState { .. })
    ));
    shadow.write_pages(&pages).unwrap();
    assert_eq!(differing_pages(stopped.vm().ram(), &shadow), [0; 0]);

    // Memory and device state are of the same instant: no stream that a given-up save left behind was taken for this one.
    let before = bench.report("source", 0).await;
    vm.kill().await;
    let standby = StandbyVm::launch(&bench.description, &bench.standby(), &[], shadow)
        .await
        .unwrap();
    let (_vm, _) = standby.resume_from(&state).await.unwrap();
    let after = bench.report("standby", before.seq + 5).await;
    assert!(after.run == before.run && after.memory_ok, "{after:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn damaged_device_state_is_refused_with_qemus_reason() {
    let bench = Bench::new("damaged", TrackerChoice::Auto);
    let standby = StandbyVm::launch(&bench.description, &bench.standby(), &[], shadow_of(&bench))
        .await
        .unwrap();
    let error = standby
        .resume_from(b"this is no device state")
        .await
        .unwrap_err();
    let Error::Exited { stderr, .. } = &error else {
        panic!("{error:?}")
    };
    assert!(stderr.contains("Not a migration stream"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn events_tell_about_a_guest_that_ended() {
    let mut bench = Bench::new("ended", TrackerChoice::Auto);
    // The kernel finds no init, panics and reboots, which ends the VM.
    bench.description.append =
        Some("console=ttyS0 quiet panic=-1 rdinit=/missing init=/missing".into());
    bench.description.extra_args.push("-no-reboot".into());
    let mut vm = SourceVm::launch(&bench.description, &bench.source(), &[])
        .await
        .unwrap();
    let mut events = vm.subscribe();
    vm.start_tracking().await.unwrap();
    vm.resume().await.unwrap();
    assert_eq!(events.recv().await.unwrap(), VmEvent::Resumed);
    let end = events.recv().await.unwrap();
    assert_eq!(
        end,
        VmEvent::Shutdown {
            guest: true,
            reason: "guest-reset".into()
        }
    );
    assert!(
        matches!(vm.stop().await, Err(Error::GuestEnded { state, .. }) if state == "guest-reset")
    );
    assert!(matches!(vm.resume().await, Err(Error::GuestEnded { .. })));
    sigkill(vm.pid());
    while events.recv().await.unwrap() != VmEvent::Closed {}
    let error = vm.freeze().await.unwrap_err();
    assert!(
        matches!(&error, Error::Exited { status, .. } if status == "killed by signal 9"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_guest_stands_still_until_it_is_resumed() {
    let bench = Bench::new("frozen", TrackerChoice::Auto);
    let mut vm = running(&bench).await;
    assert!(vm.is_running().await.unwrap());
    vm.freeze().await.unwrap();
    assert!(!vm.is_running().await.unwrap());
    let seq = bench.report("source", 0).await.seq;
    vm.resume().await.unwrap();
    bench.report("source", seq + 2).await;
    assert_eq!(vm.ram().len(), MEMORY_MIB << 20);
}
