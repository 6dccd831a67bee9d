-- wrk asks for this once, at the end; no function of it runs for a request, so that the load stays as fast as without.
function done(summary, latency, requests)
   local e = summary.errors
   io.write(string.format(
      '\nGATEBENCH {"requests": %d, "duration_us": %d, "bytes": %d, "connect": %d, "read": %d, "write": %d, ' ..
      '"timeout": %d, "status": %d, "p50_us": %.1f, "p99_us": %.1f, "p999_us": %.1f}\n',
      summary.requests, summary.duration, summary.bytes, e.connect, e.read, e.write, e.timeout, e.status,
      latency:percentile(50), latency:percentile(99), latency:percentile(99.9)))
end
