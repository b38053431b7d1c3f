#!/usr/bin/env bash
# A real Apache Kafka broker for the tests, alone in its cluster (KRaft) and bound to 127.0.0.1. Needs Java 17 or newer,
# and Maven the first time. What is missing is said on stderr: with exit code 3, which a test takes as a reason to skip,
# and with exit code 1 in CI (CI=true).
#
#   broker.sh fetch                          downloads the broker unless it is there; prints the directory of its jars
#   broker.sh start DIR [PORT]               makes a broker in DIR and waits until it serves; prints host:port
#   broker.sh stop DIR                       lets it end in order
#   broker.sh kill DIR                       kill -9
#   broker.sh resume DIR                     starts it again after either, on the same data and the same ports
#   broker.sh console-consumer DIR ARGS...   Kafka's console consumer
#   broker.sh tool DIR CLASS ARGS...         any other, such as org.apache.kafka.tools.TopicCommand
#
# In DIR: bootstrap, bootstrap.sasl and bootstrap.ssl (where each listener is), ca.pem (what to trust for TLS), pid,
# server.properties, data/, broker.log. SASL is PLAIN, with the user `tidewater` and the password `tide`.
#
# With TIDEWATER_BROKER_LEASH=1, `start` takes its standard input for a leash: where that ends, because whoever held the
# other end of the pipe is gone, the broker is killed and DIR removed. A pipe ends with its process however that ended;
# a process id may be a zombie's, or someone else's by now.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd -P)

fail() {
    echo "tests/kafka: $1" >&2
    exit 1
}

unavailable() {
    [ "${CI:-}" != true ] || fail "$1"
    echo "tests/kafka: $1" >&2
    exit 3
}

find_java() {
    java=${JAVA_HOME:+$JAVA_HOME/bin/}java
    command -v "$java" >/dev/null || unavailable "there is no Java; install Java 17 or newer, or set JAVA_HOME"
    local about version
    about=$("$java" -XshowSettings:properties -version 2>&1) || unavailable "\`$java -version\` fails"
    version=$(sed -n 's/.*java.specification.version = //p' <<<"$about")
    [ "${version%%.*}" -ge 17 ] 2>/dev/null \
        || unavailable "Java is ${version:-of an unknown version}, and Kafka needs 17 or newer"

    # One copy for all clones; another pom.xml has another copy.
    home=${XDG_CACHE_HOME:-$HOME/.cache}/tidewater/kafka-$(cksum <"$here/pom.xml" | cut -d' ' -f1)
    # Written by one Java, of no use to another.
    archive=$home/classes-$(sed -n 's/.*java.vm.version = //p' <<<"$about" | tr -c '[:alnum:]\n' -).jsa
}

# Sets `home`, with everything in it. Made under another name and renamed, so what is there is whole.
fetch() {
    find_java
    if [ ! -d "$home" ]; then
        command -v mvn >/dev/null || unavailable "there is no mvn to download Kafka with; install Maven (Debian: maven)"
        mkdir -p "$(dirname "$home")"
        local new
        new=$(mktemp -d "$home.XXXXXX")
        echo "tests/kafka: downloading Kafka into $home" >&2
        if ! mvn -q -B -f "$here/pom.xml" -DoutputDirectory="$new/libs" -DincludeScope=runtime \
            org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies >"$new/log" 2>&1; then
            cat "$new/log" >&2
            rm -rf "$new"
            unavailable "Maven could not download Kafka; what it says is above"
        fi
        certify "$new" >"$new/log" 2>&1 || {
            cat "$new/log" >&2
            rm -rf "$new"
            fail "Java's keytool could not make a certificate"
        }
        rm "$new/log"
        # Where somebody else was faster, ours lands inside theirs.
        mv "$new" "$home"
        rm -rf "${home:?}/${new##*/}"
    fi
    CLASSPATH=$(printf '%s:' "$home"/libs/*.jar)
    export CLASSPATH
    [ -e "$archive" ] || rehearse
}

# A certificate that vouches for itself, for ten years.
certify() {
    local keytool=${JAVA_HOME:+$JAVA_HOME/bin/}keytool
    local store=(-keystore "$1/broker.p12" -storetype PKCS12 -storepass tidewater -alias broker)
    "$keytool" -genkeypair "${store[@]}" -keyalg EC -groupname secp256r1 -validity 3650 -dname CN=localhost \
        -ext san=dns:localhost,ip:127.0.0.1 -ext bc=ca:true \
        && "$keytool" -exportcert "${store[@]}" -rfc -file "$1/ca.pem"
}

# Starts a broker once and keeps the classes as Java has them in memory: from then on, a start takes half the time.
# Without them everything works as well, so no failure here is one; an empty file says that it was tried.
rehearse() {
    local stage
    stage=$(mktemp -d "$home/rehearsal.XXXXXX")
    (
        dir=$stage/broker
        mkdir "$dir"
        trap kill_it EXIT
        configure && format && launch "-XX:ArchiveClassesAtExit=$stage/classes" && await && stop
    ) >/dev/null 2>&1 || true
    [ -s "$stage/classes" ] || touch "$stage/classes"
    mv -f "$stage/classes" "$archive"
    rm -rf "$stage"
}

# Runs Java as one does for something short: what it saves at the start is never earned back later. What Java itself has
# to say must not get into a tool's output.
run_java() {
    local shared=()
    [ ! -s "$archive" ] || shared=("-XX:SharedArchiveFile=$archive")
    exec "$java" -Xms128m -Xmx512m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Xlog:disable -Xlog:all=error:stderr \
        ${shared[@]+"${shared[@]}"} "$@"
}

answers() {
    (exec 4<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null
}

# A port below those that the system gives to clients: one of theirs could be taken by a client while the broker is
# down.
free_port() {
    while :; do
        port=$((20000 + RANDOM % 12000))
        case " $chosen " in *" $port "*) continue ;; esac
        ! answers "$port" || continue
        chosen="$chosen $port"
        return
    done
}

# Writes server.properties and says where the listeners will be. $1: the port of the plain listener, if it matters.
configure() {
    local chosen=${1:-} port plain sasl ssl controller
    plain=${1:-}
    [ -n "$plain" ] || { free_port && plain=$port; }
    free_port && sasl=$port
    free_port && ssl=$port
    free_port && controller=$port
    echo "127.0.0.1:$plain" >"$dir/bootstrap"
    echo "127.0.0.1:$sasl" >"$dir/bootstrap.sasl"
    echo "127.0.0.1:$ssl" >"$dir/bootstrap.ssl"
    cp "$home/ca.pem" "$dir/ca.pem"
    cat >"$dir/server.properties" <<PROPERTIES
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:$controller
controller.listener.names=CONTROLLER
listeners=PLAINTEXT://127.0.0.1:$plain,SASL_PLAINTEXT://127.0.0.1:$sasl,SSL://127.0.0.1:$ssl,CONTROLLER://127.0.0.1:$controller
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,SASL_PLAINTEXT:SASL_PLAINTEXT,SSL:SSL,CONTROLLER:PLAINTEXT
inter.broker.listener.name=PLAINTEXT
sasl.enabled.mechanisms=PLAIN
listener.name.sasl_plaintext.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required user_tidewater="tide";
listener.name.ssl.ssl.keystore.type=PKCS12
listener.name.ssl.ssl.keystore.location=$home/broker.p12
listener.name.ssl.ssl.keystore.password=tidewater
log.dirs=$dir/data

# One broker, few partitions: the first transaction and the first group need not wait for fifty.
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
log.cleaner.dedupe.buffer.size=16777216

# Tests name what they need, and do not wait.
auto.create.topics.enable=false
delete.topic.enable=true
group.initial.rebalance.delay.ms=0
transaction.abort.timed.out.transaction.cleanup.interval.ms=1000

# After kill -9, the broker is let in again when the session of the one before has ended: nine seconds, by default.
broker.heartbeat.interval.ms=500
broker.session.timeout.ms=2000
PROPERTIES
}

format() {
    # Sixteen bytes in base64; it must not begin with a dash.
    local id
    id=Tidewater$(head -c 9 /dev/urandom | base64 | tr '+/' '-_')A
    rm -rf "$dir/data"
    (run_java -Dorg.slf4j.simpleLogger.defaultLogLevel=warn kafka.tools.StorageTool format \
        --cluster-id "$id" --config "$dir/server.properties") >"$dir/format.log" 2>&1 \
        || { cat "$dir/format.log" >&2 && return 1; }
}

# Starts the broker in a process group of its own, so that what is meant for a test (Ctrl-C) does not reach it.
launch() {
    [ ! -e "$dir/broker.log" ] || cat "$dir/broker.log" >>"$dir/broker.old.log"
    : >"$dir/broker.log"
    set -m
    run_java "$@" -XX:ErrorFile="$dir/hs_err.log" -Dorg.slf4j.simpleLogger.showDateTime=true \
        '-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd HH:mm:ss.SSS' \
        -Dorg.slf4j.simpleLogger.log.org.apache.kafka.common.config=warn \
        kafka.Kafka "$dir/server.properties" >"$dir/broker.log" 2>&1 </dev/null 3<&- &
    echo $! >"$dir/pid"
    set +m
}

# Waits until the broker just launched serves.
await() {
    local pid deadline=$((SECONDS + 120))
    pid=$(cat "$dir/pid")
    until grep -q 'Kafka Server started' "$dir/broker.log"; do
        kill -0 "$pid" 2>/dev/null || return 1
        [ "$SECONDS" -lt "$deadline" ] || { kill -KILL "$pid" && return 1; }
        sleep 0.05
    done
}

# Whether the process of DIR/pid is there and is this broker: after a crash the number may be anybody's. Sets `pid`.
alive() {
    pid=$(cat "$dir/pid" 2>/dev/null) || return 1
    local command
    if [ -d /proc/self ]; then
        { command=$(tr '\0' ' ' <"/proc/$pid/cmdline"); } 2>/dev/null || return 1
    else
        command=$(ps -o command= -p "$pid") || return 1
    fi
    case $command in *"$dir/server.properties"*) ;; *) return 1 ;; esac
}

wait_until_gone() {
    local deadline=$((SECONDS + $1))
    while alive; do
        [ "$SECONDS" -lt "$deadline" ] || return 1
        sleep 0.05
    done
}

stop() {
    local pid
    alive || return 0
    kill -TERM "$pid"
    wait_until_gone 30 || kill_it
}

kill_it() {
    local pid
    alive || return 0
    kill -KILL "$pid"
    wait_until_gone 30
}

# Ends the broker, whichever it then is, with the other end of our standard input.
leash() {
    set -m
    (
        trap '' INT TERM HUP
        cat <&3
        kill_it
        rm -rf "$dir"
    ) >/dev/null 2>&1 &
    set +m
}

did_not_start() {
    # What went wrong is followed by pages of an orderly end.
    grep -E -m 5 -A 3 'ERROR|Exception' "$dir/broker.log" >&2 || tail -n 20 "$dir/broker.log" >&2
    fail "the broker in $dir did not start; what its broker.log says is above"
}

start() {
    [ "${TIDEWATER_BROKER_LEASH:-}" != 1 ] || leash
    fetch
    local attempt
    for attempt in 1 2 3 4 5; do
        configure "$@"
        format || fail "the data of the broker could not be prepared in $dir"
        launch
        if await; then
            cat "$dir/bootstrap"
            return
        fi
        grep -q 'Address already in use' "$dir/broker.log" || break
    done
    did_not_start
}

resume() {
    fetch
    launch
    await || did_not_start
}

tool() {
    fetch
    run_java -Dorg.slf4j.simpleLogger.defaultLogLevel=warn "$@"
}

usage() {
    sed -n 's/^#   \(broker.sh [a-z]\)/\1/p' "$here/broker.sh" >&2
    exit 2
}

exec 3<&0
command=${1:-}
if [ "$command" = fetch ]; then
    fetch
    echo "$home/libs"
    exit
fi
[ $# -ge 2 ] || usage
[ "$command" != start ] || mkdir -p "$2"
dir=$(cd "$2" 2>/dev/null && pwd -P) || fail "there is no directory $2"
shift 2
case $command in
    start)
        [ -z "${1:-}" ] || ! answers "$1" || fail "something else answers at port $1"
        [ ! -e "$dir/data" ] || fail "there is a broker in $dir already; \`resume\` starts it again"
        start "$@"
        ;;
    stop) stop ;;
    kill) kill_it ;;
    resume)
        [ -e "$dir/data" ] || fail "there is no broker in $dir"
        ! alive || fail "the broker in $dir is running"
        resume
        ;;
    console-consumer)
        tool org.apache.kafka.tools.consumer.ConsoleConsumer --bootstrap-server "$(cat "$dir/bootstrap")" "$@"
        ;;
    tool) tool "$@" ;;
    *) usage ;;
esac
