// Captures what the OpenTelemetry SDK for JavaScript exports over HTTP, as protobuf and as JSON.
//
// Run in a folder outside this repository:
//   npm install @opentelemetry/api @opentelemetry/api-logs @opentelemetry/sdk-logs @opentelemetry/resources \
//     @opentelemetry/exporter-logs-otlp-proto @opentelemetry/exporter-logs-otlp-http
//   cp .../tests/data/golden/generate_node_sdk.mjs . && node generate_node_sdk.mjs .../tests/data/golden/captured
//
// Written with sdk-logs 0.223.1 on Node 20. Traces and times are fixed, so that the bytes change only with the SDK.

import { createServer } from 'node:http';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { ROOT_CONTEXT, TraceFlags, trace } from '@opentelemetry/api';
import { SeverityNumber } from '@opentelemetry/api-logs';
import { OTLPLogExporter as JsonExporter } from '@opentelemetry/exporter-logs-otlp-http';
import { OTLPLogExporter as ProtobufExporter } from '@opentelemetry/exporter-logs-otlp-proto';
import { resourceFromAttributes } from '@opentelemetry/resources';
import { BatchLogRecordProcessor, LoggerProvider } from '@opentelemetry/sdk-logs';

const folder = process.argv[2];
const SECONDS = 1_767_225_600;
const time = (nanos) => [SECONDS, nanos];

function emit(logger, other) {
  const context = trace.setSpanContext(ROOT_CONTEXT, {
    traceId: '5b8efff798038103d269b633813fc60c',
    spanId: 'eee19b7ec3c1b174',
    traceFlags: TraceFlags.SAMPLED,
  });
  logger.emit({
    timestamp: time(1), observedTimestamp: time(2), context, eventName: 'constitutional.check',
    severityNumber: SeverityNumber.WARN, severityText: 'WARN',
    body: JSON.stringify({
      event_id: 'js-1', constitutional_hash: 'cdd01ef066bc6cf2',
      violations: [{ type: 'privacy_violation', severity: 'high' }], compliance_score: 0.2, prompt: 'naïve “question” 🙂',
    }),
    attributes: { workload_id: 'w-1', event_id: 'the body wins' },
  });
  logger.emit({
    timestamp: time(3), observedTimestamp: time(4), eventName: 'model.call',
    body: {
      event_id: 'js-2', compliance_score: 0, model_id: 'alpha', messages: [{ role: 'user', content: 'hi' }],
      big: 9007199254740991, negative: -7, nothing: null, nested: { deep: { er: [1, 2.5, true] } },
    },
    attributes: { tags: ['a', 'b'], ratio: 0.1, cached: false },
  });
  logger.emit({
    timestamp: time(5), observedTimestamp: time(6),
    attributes: { status: 'success', compliance_score: 1, event_id: 'js-3' },
  });
  other.emit({ timestamp: time(7), observedTimestamp: time(7), context, body: 'a plain line' });
  other.emit({
    timestamp: time(8), observedTimestamp: time(9),
    body: JSON.stringify({ event_id: 'js-5', source: 'human_review', verdict: 'correct', corrected_response: 'better' }),
  });
  other.emit({
    timestamp: time(10), observedTimestamp: time(11), eventName: 'policy_evaluation', context,
    attributes: { compliance_score: 0.9, event_id: 'js-6' },
  });
}

async function capture(name, Exporter) {
  const posted = [];
  const server = createServer((request, response) => {
    const parts = [];
    request.on('data', (part) => parts.push(part));
    request.on('end', () => {
      posted.push({ headers: request.headers, body: Buffer.concat(parts) });
      response.end();
    });
  });
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
  const exporter = new Exporter({ url: `http://127.0.0.1:${server.address().port}/v1/logs` });
  const provider = new LoggerProvider({
    resource: resourceFromAttributes({ 'service.name': 'web-assistant', 'deployment.environment.name': 'test' }),
    processors: [new BatchLogRecordProcessor({ exporter })],
  });
  emit(provider.getLogger('audit', '1.2.3'), provider.getLogger('other'));
  await provider.shutdown();
  server.close();
  if (posted.length !== 1) throw new Error(`${posted.length} requests came, one was expected`);
  writeFileSync(join(folder, `${name}.bin`), posted[0].body);
  const headers = { 'content-type': posted[0].headers['content-type'] };
  writeFileSync(join(folder, `${name}.headers.json`), `${JSON.stringify(headers, null, 2)}\n`);
}

await capture('node_sdk_protobuf', ProtobufExporter);
await capture('node_sdk_json', JsonExporter);
