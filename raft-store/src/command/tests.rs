use fabric::wire::{decode, encode};

use super::*;
use crate::state::tests::*;

/// One of each command.
fn samples() -> Vec<Command> {
    use CommandV1::*;
    let (machine, some) = (machine_id(1), Some(7));
    vec![
        init(1),
        admit(1, 2),
        UpdateNode { node: node_id(2), patch: Box::default(), expected_revision: some },
        remove(2, true),
        PlanAbsence { node: node_id(2), for_ms: 60_000 },
        EndAbsence { node: node_id(2) },
        CreateToken {
            id: TokenId([1; 8]),
            secret_hash: Digest([2; 32]),
            role: Role::Worker,
            uses: 3,
            ttl_ms: 3_600_000,
        },
        RevokeToken { id: TokenId([1; 8]) },
        CreateTenant { name: name("sub"), parent: Some(name("top")), quota: Quota::default() },
        DeleteTenant { name: name("sub"), expected_revision: None },
        SetQuota { name: name("sub"), quota: Quota::default(), expected_revision: some },
        CreateMachine {
            id: machine,
            tenant: name("sub"),
            name: name("web"),
            spec: Box::new(spec(1 << 30)),
            desired: Desired::Running,
        },
        desire(1, Desired::Stopped),
        UpdateLabels { machine, patch: LabelPatch::default(), expected_revision: some },
        RestartMachine { machine, expected_revision: None },
        Forget { machine, epoch: 2 },
        Place { items: vec![item(1, 2, &[1, 2])] },
        Confirm { machine, epoch: 2 },
        Failed { machine, epoch: 2, reason: "it broke".into(), back_off_ms: 5, here: true },
        Release { machine, epoch: 2 },
        takeover(1, 2, 3, &[1], 9),
        move_begin(1, 2, 3, 2),
        move_switch(1, 2, 3),
        move_abort(1, 2, 3),
        put_image("sub", "shell", 1),
        DeleteImage { tenant: name("sub"), name: name("shell"), expected_revision: None },
        SetFeatureLevel { level: 1 },
        AddCa { ca: ca(1) },
        Ended { machine, epoch: 2, restarts: 1, code: 3 },
    ]
}

fn framed(command: Command) -> Vec<u8> {
    encode(&Envelope {
        actor: Actor::fabric(node_id(1)),
        idempotency: Some(IdempotencyKey([4; 16])),
        at_ms: 5,
        command,
    })
}

#[test]
fn every_command_survives_the_wire() {
    for command in samples() {
        let frame = framed(command.clone());
        assert_eq!(decode::<Envelope>(&frame).map(|envelope| envelope.command), Ok(command));
    }
}

/// These bytes are in logs. If this test fails, the format has changed: add a new version of the envelope instead.
#[test]
fn golden_digests() {
    let found: Vec<String> =
        samples().into_iter().map(|c| format!("{} {}", c.verb(), Digest::of(&framed(c)).short())).collect();
    assert_eq!(found.join("\n"), GOLDEN.trim());
}

const GOLDEN: &str = "
init-cluster 28b8c50fbe
admit-node ba5791b059
update-node cda2e34e7b
remove-node db5c74027a
plan-absence fc7cd2dafe
end-absence 8000d718eb
create-token ea551c3a8c
revoke-token 123ddd1264
create-tenant 871eea2901
delete-tenant 2d9b51558c
set-quota 7a1ac7dd08
create-machine f2eec75928
stop-machine 2042e399a5
update-labels 3eb39cd7c8
restart-machine 71032bd250
forget-machine b8dfa53d3f
place 17e81df50b
confirm 4553b7f4c5
failed 2e345a1fe2
release cc2f4688fb
takeover 2eda5eed2c
move-begin b7a9911073
move-switch 98154c591a
move-abort 039d1326ae
put-image 8f916667cd
delete-image 6289fc6985
set-feature-level 2885e63ac2
add-ca 8a2df52439
ended 192ba45dce
";

#[test]
fn answers_and_results_are_the_same_thing() {
    for result in [Ok(Outcome::Removed), Err(Refusal::new("code", "message"))] {
        let answer = Answer::from(result.clone());
        assert_eq!(decode::<Answer>(&encode(&answer)), Ok(answer.clone()));
        assert_eq!(Result::from(answer), result);
    }
}
