"""Protocols that are not HTTP: MariaDB and SMTP (the server speaks first), redis and PostgreSQL (the client does)."""

import os
import pwd
import shutil
import smtplib
import subprocess

from areas.tls import certificate
from cases import Area
from lab import LOOPBACK, find

area = Area("opaque")
TCP = {"protocol": "tcp"}


def as_user(*names):
    """How to start a server that refuses to run as root: prefix of the command and the user's ids."""
    if os.getuid():
        return [], None
    for name in names:
        try:
            return [find("runuser"), "-u", name, "--"], pwd.getpwnam(name)
        except KeyError:
            continue
    raise RuntimeError(f"no user of {names} to run the server as")


def mariadb(lab):
    data, port = lab.path("mariadb"), lab.port()
    user = "--user=root" if os.getuid() == 0 else "--skip-name-resolve"
    common = ["--no-defaults", f"--datadir={data}", user]
    subprocess.run([find("mariadb-install-db"), *common, "--auth-root-authentication-method=normal",
                    "--skip-test-db"], check=True, capture_output=True, timeout=100)
    lab.start("mariadb", [find("mariadbd"), *common, f"--port={port}", f"--bind-address={LOOPBACK}",
                          f"--socket={lab.path('mariadb.sock')}", f"--pid-file={lab.path('mariadb.pid')}"], ready=port, within=60)
    return port


def postgres(lab):
    data, port = lab.path("postgres"), lab.port()
    prefix, user = as_user("postgres")
    data.mkdir()
    cert, key = certificate(lab, "localhost")
    shutil.copy(cert, data.parent / "server.crt")
    shutil.copy(key, data.parent / "server.key")
    if user:
        for path in (data, data.parent / "server.key"):
            os.chown(path, user.pw_uid, user.pw_gid)
    (data.parent / "server.key").chmod(0o600)
    folder = "/usr/lib/postgresql/*/bin"
    subprocess.run([*prefix, find(f"{folder}/initdb"), "-D", data, "-A", "trust", "-U", "test", "--no-sync"], check=True,
                   capture_output=True, timeout=100, cwd="/")
    settings = {"port": port, "listen_addresses": LOOPBACK, "unix_socket_directories": "", "ssl": "on", "fsync": "off",
                "ssl_cert_file": data.parent / "server.crt", "ssl_key_file": data.parent / "server.key"}
    lab.start("postgres", [*prefix, find(f"{folder}/postgres"), "-D", data,
                           *[part for k, v in settings.items() for part in ("-c", f"{k}={v}")]], ready=port, cwd="/")
    return port


def redis(lab):
    port = lab.port()
    lab.start("redis", [find("redis-server"), "--port", port, "--bind", LOOPBACK, "--save", "", "--dir", lab.folder], ready=port)
    return port


def smtp(lab):
    import sys
    port = lab.port()
    lab.start("smtp", [sys.executable, "-m", "aiosmtpd", "-n", "-l", f"{LOOPBACK}:{port}", "-c",
                       "aiosmtpd.handlers.Debugging", "stdout"], ready=port)
    return port


@area.setup
def world(lab):
    meshes = {}
    for name, start in (("mariadb", mariadb), ("postgres", postgres), ("redis", redis), ("smtp", smtp)):
        port = start(lab)
        meshes[name] = lab.mesh(name, port, peer=TCP, inbound=TCP)
        # the same server behind a door that detects the protocol
        meshes[f"{name}-auto"] = lab.mesh(f"{name}-auto", port, peer=TCP)
    return meshes


def both(name, within=60):
    """Registers a case for the declared and for the detecting door."""
    def register(function):
        label = function.__name__.replace("_", "-")
        area.case(name, within=within, name=label)(function)
        area.case(f"{name}-auto", within=within, name=f"{label}-detected")(function)
        return function
    return register


def run(*argv, send=None):
    done = subprocess.run([str(a) for a in argv], capture_output=True, text=True, timeout=50, input=send or "")
    assert done.returncode == 0, f"{argv[0]}: {done.stderr or done.stdout}"
    return done.stdout


@both("mariadb")
def mariadb_queries(at):
    sql = ("DROP DATABASE IF EXISTS shop; CREATE DATABASE shop; USE shop; CREATE TABLE t (id INT PRIMARY KEY, v LONGTEXT);"
           "INSERT INTO t SELECT seq, REPEAT(CHAR(65 + seq % 26), 4000) FROM seq_1_to_500; SELECT COUNT(*), SUM(LENGTH(v)) FROM t;"
           "SELECT MD5(GROUP_CONCAT(v)) FROM t WHERE id < 9; SELECT v FROM t ORDER BY id;")
    out = run(find("mariadb"), "--no-defaults", "-h", at.host, "-P", at.tcp, "-u", "root", "--protocol=tcp", "--skip-ssl", "-N",
              "-e", sql)
    assert "500\t2000000" in out and len(out) > 2000000, out[:200]
    return out


@both("mariadb")
def mariadb_many_connections(at):
    for _ in range(20):
        run(find("mariadb"), "--no-defaults", "-h", at.host, "-P", at.tcp, "-u", "root", "--protocol=tcp", "-N", "-e", "SELECT 1")


def psql(at, mode, sql, send=None):
    return run(find("/usr/lib/postgresql/*/bin/psql"), "-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-d",
               f"host={at.host} port={at.tcp} user=test dbname=postgres sslmode={mode} connect_timeout=20", "-c", sql, send=send)


@both("postgres")
def postgres_plain_and_by_ssl_request(at):
    seen = []
    for mode in ("disable", "prefer", "require"):
        seen.append(psql(at, mode, "SELECT ssl, version FROM pg_stat_ssl WHERE pid = pg_backend_pid()").strip())
    assert seen[0] == "f|" and seen[1] == seen[2] == "t|TLSv1.3", seen
    return seen


@both("postgres")
def postgres_copies_both_ways(at):
    lines = "".join(f"{n}\t{'v' * 1000}\n" for n in range(5000))
    psql(at, "require", "DROP TABLE IF EXISTS big; CREATE TABLE big (id int, v text)")
    psql(at, "require", "COPY big FROM STDIN", send=lines)
    assert psql(at, "disable", "COPY (SELECT * FROM big ORDER BY id) TO STDOUT") == lines


@both("redis")
def redis_commands(at):
    cli = [find("redis-cli"), "-h", at.host, "-p", at.tcp]
    seen = [run(*cli, *words) for words in (("SET", "k", "v" * 100000), ("STRLEN", "k"), ("GET", "k"), ("SET", "n", "41"),
                                            ("INCR", "n"), ("EVAL", "return redis.call('GET', KEYS[1])", "1", "k"))]
    assert seen[1] == "100000\n", seen[1]
    piped = "".join(f"SET key{n} {n}\r\n" for n in range(20000))
    assert "errors: 0, replies: 20000" in run(*cli, "--pipe", send=piped)
    return seen


@both("redis")
def redis_benchmark(at):
    out = run(find("redis-benchmark"), "-h", at.host, "-p", at.tcp, "-n", "4000", "-c", "30", "-t", "ping,set,get,lpush", "-q", "-P", "4")
    return sorted(line.split(":")[0].split()[0] for line in out.replace("\r", "\n").splitlines() if "requests per second" in line
                  and "rps" not in line)


@both("smtp")
def smtp_mail(at):
    with smtplib.SMTP(at.host, at.tcp, local_hostname="caller.test", timeout=20) as server:
        seen = [server.ehlo()[0], server.noop()]
        seen.append(server.sendmail("a@caller.test", ["b@shop.test", "c@shop.test"], "Subject: hi\r\n\r\n" + "line\r\n" * 20000))
        seen.append(server.docmd("VRFY", "nobody@shop.test"))
        return seen, server.quit()


@both("smtp")
def smtp_banner_without_a_byte_from_the_client(at):
    # a client that says nothing gets the banner: nobody may wait for its first byte
    server = smtplib.SMTP(timeout=20)
    code, banner = server.connect(at.host, at.tcp)
    server.close()
    assert code == 220
    return code, banner
