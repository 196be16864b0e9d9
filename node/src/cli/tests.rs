//! The command line as it is typed.

use clap::{CommandFactory, Parser};

use super::session::Session;
use super::{Cli, CliError, Command, Exit, client};
use crate::api::failure::Failure;
use crate::api::tests::Served;
use crate::cli::args::{MachineCommand, NodeCommand};

fn parse(line: &str) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(std::iter::once("smartnode").chain(line.split_whitespace()))
}

#[test]
fn the_definition_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn every_verb_of_this_version_is_there_and_no_later_one() {
    for line in [
        "init --detach --name n1 --zone a --label disk=ssd",
        "join n1:7420 n2:7420 --token sn1-x --data-dir /srv/n2 --listen 127.0.0.1:7420 --admin-listen 127.0.0.1:7421",
        "start --admin-socket /run/x.sock --advertise 10.0.0.1:7420 --log-format json",
        "stop --timeout 5s",
        "leave --purge --yes",
        "status --wait-tolerance 1 --timeout 1m -o json",
        "version -o yaml",
        "completion bash",
        "service install",
        "service uninstall --unit-dir /tmp",
        "token create --role worker --ttl 30m --uses 3",
        "token list -o name",
        "token revoke 0123456789abcdef",
        "node list",
        "node inspect n1",
        "node cordon n1",
        "node uncordon n1",
        "node drain n1 --wait",
        "node remove n1 --force -y",
        "machine list --state running --node n1 -l a=b",
        "machine inspect web",
        "machine start web --wait",
        "machine stop web",
        "machine restart web",
        "machine delete web --yes --dry-run",
        "machine exec web -- cat -n",
        "machine logs web --follow --tail 10",
        "machine forward web 8080:80",
        "machine move web --to n2 --wait --idempotency-key move-1",
        "image from-host tools /bin/sh /bin/cat",
        "image list --tenant acme",
        "image delete tools",
        "tenant create acme --parent default",
        "tenant list",
        "tenant inspect acme",
        "tenant delete acme",
        "events --follow --since 1-2",
    ] {
        parse(line).unwrap_or_else(|error| panic!("{line}: {error}"));
    }
    for line in [
        "doctor",
        "top",
        "network list",
        "machine console web",
        "machine resize web",
        "image import x",
        "image pull x",
        "tenant quota acme",
        "machine create web --image i --network lan",
        "machine create web --image i --volume v:/data",
        "machine exec -t web -- sh",
    ] {
        assert!(parse(line).is_err(), "{line} is of a later version");
    }
    let mut help = Cli::command().render_long_help().to_string();
    for command in Cli::command().get_subcommands_mut() {
        help.push_str(&command.render_long_help().to_string());
    }
    for word in ["doctor", "console", "resize", "network", "volume", "quota", " top "] {
        assert!(!help.contains(word), "{word} is of a later version");
    }
}

#[test]
fn a_machine_is_described_in_the_units_of_people() {
    let line = "machine create web --image http --cpu 0.5 --memory 256MiB --burst-memory 1GiB --publish 127.0.0.1:8080:80 \
                --env A=b=c --label tier=front --exclusive --restart on-failure --node n2 -- /bin/http --port 80";
    let Command::Machine(MachineCommand::Create(create)) = parse(line).unwrap().command else { panic!("create") };
    assert_eq!((create.cpu, create.memory, create.burst_memory), (Some(500), Some(256 << 20), Some(1 << 30)));
    assert_eq!(create.publish[0].host_port, 8080);
    assert_eq!(create.environment, [("A".to_owned(), "b=c".to_owned())]);
    assert_eq!(create.command, ["/bin/http", "--port", "80"]);
    assert!(create.exclusive);
}

#[test]
fn a_wrong_command_line_names_the_value_and_the_rule() {
    for (line, words) in [
        ("machine create web --image i --memory 1MB", "256MiB"),
        ("status --timeout 5", "30s"),
        ("token create --role king", "voter or worker"),
        ("node list --admin ftp://x", "unix:/path"),
        ("machine forward web 0", "LOCAL:PORT"),
        ("machine stop web --idempotency-key=", "1 to 255"),
        ("machine stop web --idempotency-key ü", "1 to 255"),
    ] {
        let error = parse(line).unwrap_err();
        assert!(error.use_stderr() && error.to_string().contains(words), "{line}: {error}");
    }
}

#[test]
fn what_has_no_dry_run_refuses_one() {
    let judge = |line: &str| super::can_rehearse(&parse(line).unwrap().command);
    for line in [
        "init",
        "join n1 --token sn1-x",
        "start --detach",
        "demo",
        "machine exec web -- true",
        "machine forward web 80",
    ] {
        assert_eq!(judge(line).unwrap_err().exit, Exit::Usage, "{line}");
    }
    for line in ["leave", "stop", "node drain n1", "machine move web", "service install", "status"] {
        assert_eq!(judge(line), Ok(()), "{line}");
    }
}

#[test]
fn a_key_is_refused_where_the_ledger_knows_none() {
    let judge = |line: &str| super::is_known_by_key(&parse(line).unwrap().command);
    for line in
        ["node list", "machine logs web", "machine exec web -- true", "stop", "leave", "init", "status", "events"]
    {
        assert!(!judge(line), "{line}");
        let cli = parse(&format!("--idempotency-key k {line}")).unwrap();
        assert_eq!(super::dispatch(cli, |_, _| unreachable!()).unwrap_err().exit, Exit::Usage, "{line}");
    }
    for line in ["token create", "tenant delete t", "node drain n1", "image delete i", "machine restart web"] {
        assert!(judge(line), "{line}");
    }
}

#[tokio::test]
async fn a_key_that_is_repeated_names_one_request() {
    let served = Served::new().await;
    for code in [Exit::Ok, Exit::Ok] {
        assert_eq!(exit(&served, "machine create web --image http --idempotency-key k1").await, code);
    }
    assert_eq!(exit(&served, "machine create web --image http --idempotency-key k2").await, Exit::Conflict);
    let keys: Vec<_> = served.fake.state.lock().unwrap().writes.iter().map(|write| write.idempotency).collect();
    assert!(keys[0].is_some() && keys[0] == keys[1] && keys[1] != keys[2], "{keys:?}");
}

#[test]
fn global_flags_may_stand_anywhere() {
    let cli = parse("node drain n1 --admin http://127.0.0.1:7421 -q --wait").unwrap();
    assert!(cli.global.quiet && cli.global.wait);
    assert!(matches!(cli.command, Command::Node(NodeCommand::Drain(_))));
}

#[test]
fn an_error_is_its_cause_an_empty_line_and_the_next_command() {
    let error = CliError::from(Failure::not_found("machine", "web"));
    assert_eq!(error.exit, Exit::NotFound);
    assert_eq!(error.text(false), "error: there is no machine \"web\"\n\nhint: smartnode machine list\n");
    assert_eq!(error.text(true), "error: there is no machine \"web\"\n");
}

/// Types a line at a served fake node; its token is in a file, so that the test needs no root.
async fn run(served: &Served, line: &str) -> Result<u8, CliError> {
    let mut cli = parse(&format!("{line} --quiet --tenant acme")).unwrap();
    cli.global.admin.get_or_insert(crate::api::client::Address::Unix(served.socket()));
    let mut session = Session::new(cli.global)?;
    if !line.contains("--admin") {
        let key = session.client.idempotency_key.take();
        session.client = served.root();
        session.client.idempotency_key = key;
    }
    client(session, cli.command).await
}

async fn exit(served: &Served, line: &str) -> Exit {
    match run(served, line).await {
        Ok(_) => Exit::Ok,
        Err(error) => {
            assert!(!error.cause.is_empty());
            error.exit
        }
    }
}

#[tokio::test]
async fn every_exit_code_is_reached_by_the_command_that_should() {
    let served = Served::new().await;
    let tcp = served.port.tcp().unwrap();
    for (line, code) in [
        ("status", Exit::Ok),
        ("machine create web --image http --memory 128MiB", Exit::Ok),
        ("machine create web --image http", Exit::Conflict),
        ("machine create Web --image http", Exit::Failed),
        ("machine list -o name", Exit::Ok),
        ("machine inspect web -o yaml", Exit::Ok),
        ("machine inspect none", Exit::NotFound),
        ("node inspect n9", Exit::NotFound),
        ("node remove n1 --yes", Exit::Conflict),
        ("node remove n1", Exit::Usage),
        ("node remove n1 --yes --force", Exit::Ok),
        ("token create --uses 3 -o json", Exit::Ok),
        ("status --wait-tolerance 2 --timeout 100ms", Exit::Timeout),
        ("machine stop web --wait --timeout 100ms", Exit::Timeout),
        ("machine logs web --tail 3", Exit::Ok),
        ("events -o json", Exit::Ok),
        ("events --since 1", Exit::Failed),
        ("image delete http --yes", Exit::Conflict),
        ("tenant inspect acme", Exit::NotFound),
        ("status --admin unix:/nonexistent/admin.sock", Exit::Unreachable),
        (&format!("status --admin http://{tcp} --data-dir /nonexistent"), Exit::Denied),
        ("status --token-file /nonexistent/token", Exit::Usage),
        ("machine delete web --yes --dry-run", Exit::Ok),
        ("machine delete web --yes --wait", Exit::Ok),
        ("machine delete web --yes", Exit::NotFound),
    ] {
        assert_eq!(exit(&served, line).await, code, "{line}");
    }
}

#[tokio::test]
async fn waiting_ends_when_it_is_so_and_a_move_is_followed() {
    let served = Served::new().await;
    served.fake.add("web");
    served.fake.observe("web", fabric::model::MachineState::Running, None);
    assert_eq!(exit(&served, "machine start web --wait").await, Exit::Ok);
    let moving = run(&served, "machine move web --to n2 --wait --timeout 10s");
    let ending = async {
        while served.fake.state.lock().unwrap().operation.is_none() {
            tokio::task::yield_now().await;
        }
        served.fake.change(|state| {
            let operation = state.operation.as_mut().unwrap();
            operation.state = crate::api::backend::OperationState::Failed;
            operation.error = Some(fabric::rpc::Refusal::new(raft_store::codes::CAPACITY, "n2 is full"));
        });
    };
    let (moved, ()) = tokio::join!(moving, ending);
    let error = moved.unwrap_err();
    assert_eq!((error.exit, error.cause.as_str()), (Exit::Conflict, "n2 is full"));
}

#[tokio::test]
async fn exec_ends_with_the_code_of_the_program() {
    let served = Served::new().await;
    served.fake.add("web");
    // The fake's program ends with the number of its arguments, once its input has ended or at once without a terminal.
    assert_eq!(run(&served, "machine exec none -- true").await.unwrap_err().exit, Exit::NotFound);
    let path = "/v1/tenants/acme/machines/web/exec";
    let mut session = Session::new(parse("status").unwrap().global).unwrap();
    session.client = served.root();
    let argv = ["a", "b", "c"].map(str::to_owned).to_vec();
    assert_eq!(super::streams::exec(&mut session, path, argv).await.unwrap(), 3);
}

#[test]
fn a_unit_is_written_where_told_and_removed_again() {
    let directory = tempfile::tempdir().unwrap();
    let args = || super::args::UnitArgs { unit_dir: directory.path().to_owned() };
    let global = |flags: &str| parse(&format!("version {flags}")).unwrap().global;
    let unit = directory.path().join("smartnode.service");
    super::service::run(super::args::ServiceCommand::Install(args()), &global("--dry-run")).unwrap();
    assert!(!unit.exists());
    super::service::run(super::args::ServiceCommand::Install(args()), &global("--data-dir /srv/n1")).unwrap();
    #[expect(clippy::disallowed_methods, reason = "a file of the test")]
    let text = std::fs::read_to_string(&unit).unwrap();
    assert!(text.contains("start --data-dir \"/srv/n1\"") && text.contains("/srv/n1/cluster"), "{text}");
    super::service::run(super::args::ServiceCommand::Install(args()), &global("--data-dir /srv/n1")).unwrap();
    super::service::run(super::args::ServiceCommand::Uninstall(args()), &global("")).unwrap();
    super::service::run(super::args::ServiceCommand::Uninstall(args()), &global("")).unwrap();
    assert!(!unit.exists());
}
