Feature: Every finished task leaves a transcript

  Background:
    Given a pool "words" with 1 slot

  @ORCHD-TRACE-1
  Scenario: A task that is done tells what was asked, where it ran, what it said and how it ended
    When alice submits and streams "story":
      | prompt     | Once upon a time |
      | max_tokens | 8                |
      | seed       | 7                |
      | metadata   | {"user":"ann"}   |
    Then the stream "story" ends with end
    When alice reads the transcript of "story"
    Then the answer is 200
    And the last event of "story" names that artifact
    And the answer says:
      | kind                         | trace            |
      | content.trace_version        | 1                |
      | content.policy               | full             |
      | content.request.prompt       | Once upon a time |
      | content.request.seed         | 7                |
      | content.request.metadata     | {"user":"ann"}   |
      | content.task.state           | done             |
      | content.attempts.0.engine    | mock             |
      | content.attempts.0.seed      | 7                |
      | content.attempts.0.cache     | reuse            |
      | content.pool.slots           | 1                |
      | content.ending.type          | end              |
      | content.tokens_out           | 8                |
      | content.continuations        | 0                |
      | content.exact                | yes              |
    And its text is what "story" said
    When bob reads the transcript of "story"
    Then the answer is 404 NOT_FOUND

  @ORCHD-TRACE-1
  Scenario: Tasks that failed or were canceled leave one, too
    Given its tokens take 10 ms
    When alice submits and streams "long":
      | prompt     | Once upon a time |
      | max_tokens | 2000             |
    And alice submits and streams "waiting":
      | prompt     | And then? |
      | max_tokens | 5         |
    And "long" has received 2 tokens
    And alice cancels "waiting"
    And alice cancels "long"
    Then the stream "waiting" ends with error CANCELED
    When alice reads the transcript of "waiting"
    Then the last event of "waiting" names that artifact
    And the answer says:
      | content.task.state           | canceled  |
      | content.request.prompt       | And then? |
      | content.attempts             | []        |
      | content.ending.data.code     | CANCELED  |
      | content.output               | {"pieces":[],"text":""} |
    When alice reads the transcript of "long"
    Then the last event of "long" names that artifact
    And the answer says:
      | content.task.state        | canceled |
      | content.attempts.0.engine | mock     |

  @ORCHD-TRACE-2
  Scenario: Redacted, neither what was asked nor what was answered is kept
    Given the setting "artifacts.transcripts" is redacted
    When alice submits and streams "story":
      | prompt     | Once upon a time |
      | max_tokens | 8                |
      | metadata   | {"user":"ann"}   |
    Then the stream "story" ends with end
    When alice reads the transcript of "story"
    Then the answer says:
      | content.policy                     | redacted |
      | content.request.prompt.chars       | 16       |
      | content.output.pieces              | []       |
      | content.tokens_out                 | 8        |
    And it holds neither "Once upon" nor "ann" nor what "story" said

  @ORCHD-TRACE-2
  Scenario: Off, nothing is left
    Given the setting "artifacts.transcripts" is off
    When alice submits and streams "story":
      | prompt     | Once upon a time |
      | max_tokens | 3                |
    Then the stream "story" ends with end
    And the end event of "story" says:
      | artifact_id | null |
    And "story" has the record:
      | artifact_id | null |

  @ORCHD-TRACE-3 @ORCHD-STREAM-2
  Scenario: A stream is shown and resumed after the end and after a restart
    Given its tokens take 5 ms
    And the setting "streaming.metrics_every_ms" is 10
    When alice submits and streams "story":
      | prompt     | Once upon a time |
      | max_tokens | 12               |
    Then the stream "story" ends with end
    When the daemon is stopped
    And the daemon starts again
    And alice watches "story" as "replay"
    Then the streams "story" and "replay" are the same
    When alice watches "story" as "rest" after event 5 by ?after
    Then the stream "rest" after event 5 ends with end
    When alice watches "story" as "nothing" from where "story" stopped
    Then the answer is 204

  @ORCHD-TRACE-3
  Scenario: After kill -9 too, and of a canceled task
    Given the daemon runs as a process of its own
    And its tokens take 10 ms
    When alice submits and streams "story":
      | prompt     | Once upon a time |
      | max_tokens | 2000             |
    And "story" has received 3 tokens
    And alice cancels "story"
    And the daemon is killed
    And the daemon starts again
    And alice watches "story" as "replay"
    Then the stream "replay" ends with error CANCELED
    And the last events of "story" and "replay" are the same

  @ORCHD-TRACE-3
  Scenario: Where the transcript is redacted the events are gone with the process, and the answer says why
    Given the setting "artifacts.transcripts" is redacted
    When alice submits and streams "story":
      | prompt     | Once upon a time |
      | max_tokens | 3                |
    Then the stream "story" ends with end
    When the daemon is stopped
    And the daemon starts again
    And alice watches "story" as "replay"
    Then the answer is 404 NOT_FOUND
    And the message tells "redacted"
